"""Makes clips for the benches out of a few real ones.

    make_clips.py OUT_DIR N --source CLIPS_DIR [--kind ucf|hd|one] [--seed S]

- ucf: UCF101 cannot be fetched on every machine, so these are shaped like it: 320x240, MPEG-4
  part 2 in AVI, XVID or DIVX, 25 or 29.97 frames a second, 250 to 400 kbit/s, keyframes 12 to 250
  frames apart, B-frames in a third, 1.1 to 20 s long with a mean of about 7.2 s.
- hd: 1280x720, H.264 in MP4 by x264 with its own settings (B-frames, 3 references), 30 frames a
  second, a keyframe each second or sooner, 20 s long; from sources of at least 480 lines, or all.
- one: as ucf, of one frame: what a clip costs besides its pictures.

Their pictures are windows of the source clips, played to and fro from a random offset when the
source is too short. The same seed, sources and PyAV make the same bytes.
"""

import argparse
import random
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import cv2
import numpy as np

from clips import EXTENSIONS


@dataclass(frozen=True)
class Kind:
    """What all clips of a kind share."""

    width: int
    height: int
    extension: str
    #: Taller sources are shrunk to this as they are read, which bounds memory.
    source_height: int


#: Those of UCF's size leave room to zoom.
KINDS = {
    "ucf": Kind(320, 240, ".avi", 480),
    "hd": Kind(1280, 720, ".mp4", 720),
    "one": Kind(320, 240, ".avi", 480),
}
HD_RATE, HD_SECONDS, HD_SOURCE_LINES = 30, 20, 480
NAMES = ["Archery", "Biking", "Bowling", "Drumming", "Fencing", "Kayaking", "Rowing", "Skiing", "TaiChi", "YoYo"]
CLIPS_PER_GROUP = 4


#: Few at a time: a second of 720p is 80 MB.
@lru_cache(maxsize=8)
def read_source(path: Path, max_height: int) -> list[np.ndarray]:
    """All pictures of a clip, RGB, at most `max_height` lines high."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            height = min(frame.height, max_height)
            width = round(frame.width * height / frame.height)
            pictures.append(frame.to_ndarray(format="rgb24", width=width, height=height))
    return pictures


def duration_s(rng: random.Random) -> float:
    """Most are up to 10 s, a few longer: mean 7.2 s as UCF101's."""
    if rng.random() < 0.06:
        return rng.uniform(10.0, 20.0)
    return 1.1 + 8.9 * rng.betavariate(1.70, 1.0)


def to_and_fro(n_source: int, offset: int, n: int) -> list[int]:
    """Indices of `n` pictures from `offset`, turning round at either end."""
    period = max(2 * (n_source - 1), 1)
    return [min(i % period, period - i % period) for i in range(offset, offset + n)]


def window(picture: np.ndarray, kind: Kind, zoom: float, x: float, y: float) -> np.ndarray:
    """A part of the picture, `zoom` times smaller than the largest, at the kind's size and aspect."""
    height, width = picture.shape[:2]
    part_h = min(height, width * kind.height / kind.width) / zoom
    part_w = part_h * kind.width / kind.height
    left, top = int((width - part_w) * x), int((height - part_h) * y)
    part = picture[top : top + int(part_h), left : left + int(part_w)]
    filter_ = cv2.INTER_AREA if part_h > kind.height else cv2.INTER_CUBIC
    return cv2.resize(part, (kind.width, kind.height), interpolation=filter_)

def add_mpeg4(container: av.container.OutputContainer, rate: Fraction, rng: random.Random) -> av.VideoStream:
    """A stream as UCF101's are."""
    stream = container.add_stream("mpeg4", rate=rate)
    stream.bit_rate = rng.randrange(250_000, 400_000)
    context = stream.codec_context
    context.codec_tag = rng.choice(["XVID", "XVID", "DIVX"])
    context.gop_size = rng.choice([12, 12, 25, 50, 100, 250])
    context.max_b_frames = 2 if rng.random() < 1 / 3 else 0
    return stream


def add_h264(container: av.container.OutputContainer, rate: Fraction) -> av.VideoStream:
    """A stream as x264 makes it unless told otherwise, except for the distance of keyframes."""
    stream = container.add_stream("libx264", rate=rate, options={"preset": "medium", "crf": "23"})
    stream.codec_context.gop_size = HD_RATE
    return stream


def write_clip(path: Path, kind: str, pictures: list[np.ndarray], rng: random.Random) -> float:
    """Writes one clip and returns its duration in seconds."""
    rate = Fraction(HD_RATE) if kind == "hd" else rng.choice([Fraction(25), Fraction(30000, 1001)])
    seconds = HD_SECONDS if kind == "hd" else duration_s(rng)
    n_frames = 1 if kind == "one" else max(2, round(seconds * rate))
    indices = to_and_fro(len(pictures), rng.randrange(len(pictures)), n_frames)
    zoom, x, y, is_mirrored = rng.uniform(1.0, 1.3), rng.random(), rng.random(), rng.random() < 0.5
    shape = KINDS[kind]
    with av.open(str(path), "w", format=shape.extension[1:]) as container:
        stream = add_h264(container, rate) if kind == "hd" else add_mpeg4(container, rate, rng)
        if kind == "one":
            stream.codec_context.max_b_frames = 0  # there is nothing to reorder, and torchcodec would fail
        stream.width, stream.height, stream.pix_fmt = shape.width, shape.height, "yuv420p"
        # Threads would cut the picture into slices, and their number into the bytes.
        stream.codec_context.thread_count = 1
        for n, index in enumerate(indices):
            picture = window(pictures[index], shape, zoom, x, y)
            if is_mirrored:
                picture = np.ascontiguousarray(picture[:, ::-1])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return float(n_frames / rate)


def sources_in(folder: Path, kind: str) -> list[Path]:
    """The source clips, for HD only those large enough if there are any."""
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in EXTENSIONS)

    def lines(path: Path) -> int:
        with av.open(str(path)) as container:
            return container.streams.video[0].height

    if kind == "hd":
        paths = [p for p in paths if lines(p) >= HD_SOURCE_LINES] or paths
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("n", type=int)
    parser.add_argument("--kind", choices=KINDS, default="ucf")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", type=Path, required=True, help="folder with clips to cut from")
    args = parser.parse_args()

    cv2.setNumThreads(1)
    paths = sources_in(args.source, args.kind)
    if not paths:
        parser.error(f"{args.source}: no clips")
    total_s = total_bytes = 0
    for n in range(args.n):
        # Of the clip's number alone: N clips are the first N of any more.
        rng = random.Random(f"{args.seed}/{n}")
        name = NAMES[n // CLIPS_PER_GROUP % len(NAMES)]
        group = f"v_{name}_g{n // CLIPS_PER_GROUP // len(NAMES) + 1:02}"
        folder = args.out_dir / group
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{group}_c{n % CLIPS_PER_GROUP + 1:02}{KINDS[args.kind].extension}"
        source = read_source(rng.choice(paths), KINDS[args.kind].source_height)
        total_s += write_clip(path, args.kind, source, rng)
        total_bytes += path.stat().st_size
    print(f"{args.n} clips, mean {total_s / args.n:.2f} s, {total_bytes * 8 / total_s / 1000:.0f} kbit/s")


if __name__ == "__main__":
    main()
