"""Decodes clips by one peer on one thread, and prints what it cost.

    decode.py --clips DIR --peer NAME --mode MODE [--passes N] [--check]

| mode      | what                                                                              |
|-----------|-----------------------------------------------------------------------------------|
| all       | every frame to a model's tensor: 224x224, centre crop, normalized planar floats   |
| count8    | so the frames shown at the middles of 8 equal parts of the clip                   |
| every4s   | so the frames shown at 0, 4, 8 s and so on from the first                         |
| decode    | every frame, left as it is: YUV in the decoder's memory                           |
| keyframes | so the keyframes alone                                                            |

Prints {"peer", "mode", "clips", "frames", "cpu_s"}, of all passes together. The CPU seconds are those of
all threads while clips are opened, decoded and closed; imports and a first clip to warm up do not count.

`--check` measures nothing. It prints for each clip which frames came, by comparing the pictures with all
of the clip's as PyAV decodes them.
"""

import argparse
import contextlib
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from clips import clips_in

HERE = Path(__file__).parent
TENSORS = ["all", "count8", "every4s"]
SPARSE = ["count8", "every4s"]
MODES = [*TENSORS, "decode", "keyframes"]
#: A dash parts a library and a variant of its use.
PEERS = {
    "opencv": [*TENSORS, "decode"],
    "opencv-cubic": TENSORS,
    "opencv-seek": SPARSE,
    "pyav": MODES,
    "pyav-pillow": TENSORS,
    "pyav-seek": SPARSE,
    "torchcodec": TENSORS,
    "decord": TENSORS,
    "libav": ["decode", "keyframes"],
    "libav-probe": ["decode", "keyframes"],
}
#: Side of the pictures that `--check` compares.
CHECK_SIDE = 56


def load(peer: str, clips: list[Path]) -> object:
    library, _, variant = peer.partition("-")
    decoder = importlib.import_module(f"decoders.by_{library}").Decoder(variant)
    if hasattr(decoder, "prepare"):
        for clip in clips:
            with contextlib.suppress(Exception):  # is told of when the clip is decoded
                decoder.prepare(str(clip))
    return decoder


def count(decoder: object, clip: Path, mode: str) -> int:
    """Frames of a clip; one that the peer cannot read is told of and has none."""
    try:
        return sum(1 for _ in decoder.pictures(str(clip), mode))
    except Exception as error:  # each library has its own kinds
        print(f"rejected clip {clip}: {error}", file=sys.stderr)
        return 0


def measure(peer: str, clips: list[Path], mode: str, passes: int) -> dict[str, object]:
    decoder = load(peer, clips)
    count(decoder, clips[0], mode)
    gc.collect()
    start = time.process_time()
    frames = [count(decoder, clip, mode) for _ in range(passes) for clip in clips]
    cpu_s = time.process_time() - start
    return {"peer": peer, "mode": mode, "clips": sum(n > 0 for n in frames), "frames": sum(frames), "cpu_s": cpu_s}


def run_libav(peer: str, clips: list[Path], mode: str, passes: int) -> str:
    """Compiles the C program, which takes less time than to know whether it is up to date."""
    with tempfile.TemporaryDirectory(prefix="libav-") as folder:
        program = Path(folder) / "libav_decode"
        needs = subprocess.check_output(
            ["pkg-config", "--cflags", "--libs", "libavformat", "libavcodec", "libavutil"], text=True)
        subprocess.run(["cc", "-O2", "-o", program, HERE / "libav_decode.c", *needs.split()], check=True)
        command = [program, mode, str(passes), *(["--probe"] if peer == "libav-probe" else []), *clips]
        return subprocess.check_output(command, text=True).strip()


def small(picture: object) -> "numpy.ndarray":
    """A picture's means over squares."""
    import numpy

    planes = numpy.asarray(picture).reshape(3, CHECK_SIDE, -1, CHECK_SIDE, 224 // CHECK_SIDE)
    return planes.mean(axis=(2, 4)).ravel()


def check(peer: str, clips: list[Path], mode: str) -> None:
    import numpy

    decoder, reference = load(peer, clips), load("pyav-pillow", [])
    for clip in clips:
        all_frames = numpy.stack([small(p) for p in reference.pictures(str(clip), "all")])
        came = [small(p) for p in decoder.pictures(str(clip), mode)]
        distances = [numpy.square(all_frames - p).mean(axis=1) for p in came]
        nearest = [int(d.argmin()) for d in distances]
        worst = max((float(d.min()) ** 0.5 for d in distances), default=0)
        print(json.dumps({"clip": clip.name, "of": len(all_frames), "frames": nearest, "rms": round(worst, 3)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, required=True, help="folder of clips")
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--mode", choices=MODES, required=True)
    parser.add_argument("--passes", type=int, default=1, help="times over all clips")
    parser.add_argument("--check", action="store_true", help="print which frames came")
    args = parser.parse_args()
    if args.mode not in PEERS[args.peer]:
        parser.error(f"{args.peer} has no mode {args.mode}, only {', '.join(PEERS[args.peer])}")
    if not (clips := clips_in(args.clips)):
        parser.error(f"{args.clips}: no clips")

    # Before numpy and torch make their threads.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if args.check:
        check(args.peer, clips, args.mode)
    elif args.peer.startswith("libav"):
        print(run_libav(args.peer, clips, args.mode, args.passes))
    else:
        print(json.dumps(measure(args.peer, clips, args.mode, args.passes)))


if __name__ == "__main__":
    main()
