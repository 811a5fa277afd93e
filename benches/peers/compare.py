"""Runs ours and its peers in turn and prints the ratios.

    compare.py job CONFIG CLIPS_DIR MODEL_DIR --clipmill PATH [--resize pillow opencv]
                   [--engines ENGINE:PRECISION...] [--rounds 5]
    compare.py decode CLIPS_DIR --mode MODE --peers NAME... [--passes N] [--ours CMD...]
    compare.py encode MODEL_FOLDER [--peers ENGINE:PRECISION...] [--batch N] [--threads N] [--seconds S]
                      [--backend B] [--precision P] [--ours CMD...]
    compare.py preprocess FRAMES.i420 WIDTH HEIGHT [--size N] [--resize-to N] [--reps N] --ours CMD...

`job` measures clips a CPU second of `clipmill run` and of pipeline.py, each a fresh process with a
fresh output folder; CPU time is the kernel's account of the child, start-up included. For the peer
it is also given without imports and loading the model, which ours is never forgiven: the
`after load` ratio is the one least in our favour.

`decode` measures clips a CPU second of decoding alone, on one thread, each a fresh process that does
not count its start: decode.py for a peer, and CMD with `--clips CLIPS_DIR --mode MODE --passes N`
added, which must print the same JSON line last. decode.py says what the modes are.

`encode` measures images a CPU second of a bare inference loop, each a fresh process that does not
count its start: encode.py for a peer, and for ours CMD with
`MODEL_FOLDER --backend B --precision P --batch N --threads N --seconds S` added, which must print the
same JSON line last. A peer runs in `--openvino-ep-python` where it is openvino-ep.

`preprocess` runs CMD, which must print {"us_per_image": x} last, in turn with preprocess.py.

A ratio above 1 is in our favour. `--json FILE` keeps all rounds. With noise from other programs
the ratios within a round stay useful, the figures themselves do not.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq

from decode import MODES, PEERS
from engines import engine_and_precision

HERE = Path(__file__).parent
#: 0: all indexed; 3: finished with rejects.
FINISHED = {0, 3}
USUAL_ENGINE = ("onnxruntime", "fp32")

Round = dict[str, dict[str, float]]


def run_child(command: list[str], accepted: set[int]) -> tuple[str, float, float]:
    """Output, CPU seconds and wall seconds of a command and its children."""
    with tempfile.TemporaryFile("w+") as out:
        start = time.perf_counter()
        child = subprocess.Popen(command, stdout=out)
        _, status, usage = os.wait4(child.pid, 0)
        wall_s = time.perf_counter() - start
        child.returncode = os.waitstatus_to_exitcode(status)
        if child.returncode not in accepted:
            raise SystemExit(f"{' '.join(command)}: exited with {child.returncode}")
        out.seek(0)
        return out.read(), usage.ru_utime + usage.ru_stime, wall_s


def n_rows(folder: Path) -> int:
    """Rows of all shards, from their footers."""
    return sum(pq.read_metadata(p).num_rows for p in folder.glob("*.parquet"))


def run_ours(args: argparse.Namespace, out_dir: Path) -> dict[str, float]:
    command = [str(args.clipmill), "run", str(args.config),
               "--set", f"input.clips={json.dumps(str(args.clips_dir.resolve()))}",
               "--set", f"output.dir={json.dumps(str(out_dir))}"]
    for pair in args.set:
        command += ["--set", pair]
    _, cpu_s, wall_s = run_child(command, FINISHED)
    clips, frames = n_rows(out_dir / "clips"), n_rows(out_dir / "frames")
    if clips == 0:
        raise SystemExit(f"{args.config}: clipmill indexed no clip of {args.clips_dir}")
    return {"clips": clips, "frames": frames, "cpu_s": cpu_s, "wall_s": wall_s}


def run_peer(args: argparse.Namespace, resize: str, engine: tuple[str, str], out_dir: Path) -> dict[str, float]:
    command = [sys.executable, str(HERE / "pipeline.py"), str(args.clips_dir), str(args.model_dir),
               str(out_dir), "--decoders", str(args.decoders), "--threads", str(args.threads),
               "--batch", str(args.batch), "--resize", resize, "--engine", engine[0],
               "--precision", engine[1], "--json"]
    out, cpu_s, wall_s = run_child(command, {0})
    report = json.loads(out)
    return {"clips": report["clips"], "frames": report["frames"], "cpu_s": cpu_s, "wall_s": wall_s,
            "after_load_cpu_s": report["cpu_s"], "after_load_wall_s": report["wall_s"]}


def job_round(args: argparse.Namespace) -> Round:
    """One run of each, ours and the peers changing places from round to round."""
    runs: Round = {}
    # A peer is called by its resizing, and by its engine where that is not the usual one.
    peers = {resize if engine == USUAL_ENGINE else f"{resize} {':'.join(engine)}": (resize, engine)
             for resize in args.resize for engine in args.engines}
    names = ["clipmill", *peers]
    for name in reversed(names) if args.round % 2 else names:
        with tempfile.TemporaryDirectory(prefix="compare-") as temporary:
            out_dir = Path(temporary) / "out"
            runs[name] = run_ours(args, out_dir) if name == "clipmill" else run_peer(args, *peers[name], out_dir)
    for name in peers:
        for key in ("clips", "frames"):
            if runs[name][key] != runs["clipmill"][key]:
                print(f"warning: clipmill has {runs['clipmill'][key]:.0f} {key}, {name} {runs[name][key]:.0f}: "
                      "not the same job", file=sys.stderr)
    return runs


def job_figures(runs: Round) -> dict[str, float]:
    """Clips a second of CPU and wall time, and ours over each peer's."""
    figures = {}
    for name, run in sorted(runs.items()):
        for key in ("cpu_s", "wall_s", "after_load_cpu_s", "after_load_wall_s"):
            if key in run:
                figures[f"{name}, clips / {key}"] = run["clips"] / run[key]
    for name in [n for n in runs if n != "clipmill"]:
        for key in ("cpu_s", "wall_s"):
            ours = figures[f"clipmill, clips / {key}"]
            figures[f"ours/{name} by {key}"] = ours / figures[f"{name}, clips / {key}"]
            figures[f"ours/{name} by {key}, peer after load"] = ours / figures[f"{name}, clips / after_load_{key}"]
    return figures


def decode_round(args: argparse.Namespace) -> Round:
    """One process of each, changing places from round to round."""
    what = ["--clips", str(args.clips_dir), "--mode", args.mode, "--passes", str(args.passes)]
    commands = {"ours": [*args.ours, *what]} if args.ours else {}
    for peer in args.peers:
        commands[peer] = [sys.executable, str(HERE / "decode.py"), *what, "--peer", peer]
    runs: Round = {}
    for name in reversed(commands) if args.round % 2 else commands:
        line = json.loads(run_child(commands[name], {0})[0].strip().splitlines()[-1])
        if line["mode"] != args.mode or line["clips"] == 0:
            raise SystemExit(f"{name}: decoded {line['clips']} clips in mode {line['mode']}, asked for {args.mode}")
        runs[name] = {key: line[key] for key in ("clips", "frames", "cpu_s")}
    first = next(iter(commands))
    for name, run in runs.items():
        for key in ("clips", "frames"):
            if run[key] != runs[first][key]:
                print(f"warning: {first} has {runs[first][key]} {key}, {name} {run[key]}: not the same job",
                      file=sys.stderr)
    return runs


def decode_figures(runs: Round) -> dict[str, float]:
    """Clips a CPU second, milliseconds a clip, and ours over each peer's."""
    figures = {f"{name}, clips / cpu_s": run["clips"] / run["cpu_s"] for name, run in sorted(runs.items())}
    figures |= {f"{name}, cpu ms / clip": 1e3 * run["cpu_s"] / run["clips"] for name, run in sorted(runs.items())}
    if "ours" in runs:
        ours = figures["ours, clips / cpu_s"]
        figures |= {f"ours/{name}": ours / figures[f"{name}, clips / cpu_s"] for name in runs if name != "ours"}
    return figures


def encode_round(args: argparse.Namespace) -> Round:
    """One process of each, changing places from round to round."""
    what = ["--batch", str(args.batch), "--threads", str(args.threads), "--seconds", str(args.seconds)]
    commands = {}
    if args.ours:
        commands["ours"] = [*args.ours, str(args.model), "--backend", args.backend,
                            "--precision", args.precision, *what]
    for engine, precision in args.peers:
        python = args.openvino_ep_python if engine == "openvino-ep" else sys.executable
        commands[f"{engine}:{precision}"] = [str(python), str(HERE / "encode.py"), str(args.model), "--engine", engine,
                                             "--precision", precision, *what]
    runs: Round = {}
    for name in reversed(commands) if args.round % 2 else commands:
        line = json.loads(run_child(commands[name], {0})[0].strip().splitlines()[-1])
        for key in ("batch", "threads"):
            if line[key] != getattr(args, key):
                raise SystemExit(f"{name}: ran with {key} {line[key]}, asked for {getattr(args, key)}")
        if line["images"] == 0:
            raise SystemExit(f"{name}: encoded no image in {args.seconds} s")
        runs[name] = {key: line[key] for key in ("images", "cpu_s", "wall_s")}
    return runs


def encode_figures(runs: Round) -> dict[str, float]:
    """Images a second of CPU and wall time, and ours over each peer's."""
    figures = {f"{name}, images / {key}": run["images"] / run[key]
               for name, run in sorted(runs.items()) for key in ("cpu_s", "wall_s")}
    for name in [n for n in runs if n != "ours"] if "ours" in runs else []:
        for key in ("cpu_s", "wall_s"):
            ours = figures[f"ours, images / {key}"]
            figures[f"ours/{name} by {key}"] = ours / figures[f"{name}, images / {key}"]
    return figures


def preprocess_round(args: argparse.Namespace) -> Round:
    command = [sys.executable, str(HERE / "preprocess.py"), str(args.frames), str(args.width),
               str(args.height), "--size", str(args.size), "--resize-to", str(args.resize_to),
               "--reps", str(args.reps), "--json"]

    def ours() -> dict[str, float]:
        lines = run_child(args.ours, {0})[0].strip().splitlines()
        return json.loads(lines[-1])

    def peers() -> dict[str, float]:
        return {k: v for k, v in json.loads(run_child(command, {0})[0]).items() if v is not None}

    if args.round % 2:
        theirs = peers()
        return {"ours": ours(), "peers": theirs}
    return {"ours": ours(), "peers": peers()}


def preprocess_figures(runs: Round) -> dict[str, float]:
    """Microseconds an image, and each peer's over ours."""
    us = runs["ours"]["us_per_image"]
    figures = {"ours, us an image": us}
    figures |= {f"{name}, us an image": value for name, value in runs["peers"].items()}
    # Speed over speed is time over time upside down.
    figures |= {f"ours/{name}": value / us for name, value in runs["peers"].items()}
    return figures


def warm_cache(folder: Path) -> None:
    """So that the first round does not pay for the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="what", required=True)
    job = commands.add_parser("job", help="the whole line, clips to Parquet")
    for name in ("config", "clips_dir", "model_dir"):
        job.add_argument(name, type=Path)
    job.add_argument("--clipmill", type=Path, required=True, help="our binary, a release build")
    job.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="passed on to clipmill")
    job.add_argument("--resize", nargs="+", default=["pillow"], choices=["pillow", "torchvision", "opencv"])
    job.add_argument("--engines", nargs="+", type=engine_and_precision, default=[USUAL_ENGINE],
                     metavar="ENGINE:PRECISION", help="the peer's: onnxruntime:fp32, openvino:fp32, openvino:bf16")
    job.add_argument("--decoders", type=int, default=2, help="the peer's")
    job.add_argument("--threads", type=int, default=2, help="the peer's")
    job.add_argument("--batch", type=int, default=8, help="the peer's")
    decode = commands.add_parser("decode", help="clips to a model's tensors, on one thread")
    decode.add_argument("clips_dir", type=Path)
    decode.add_argument("--mode", choices=MODES, required=True)
    decode.add_argument("--peers", nargs="+", choices=PEERS, required=True)
    decode.add_argument("--passes", type=int, default=1, help="times over all clips in each process")
    encode = commands.add_parser("encode", help="tensors to embeddings")
    encode.add_argument("model", type=Path, metavar="MODEL_FOLDER")
    encode.add_argument("--peers", nargs="+", type=engine_and_precision, default=[USUAL_ENGINE],
                        metavar="ENGINE:PRECISION", help="onnxruntime, openvino or openvino-ep; fp32 or bf16")
    encode.add_argument("--batch", type=int, default=8, help="everyone's")
    encode.add_argument("--threads", type=int, default=1, help="everyone's")
    encode.add_argument("--seconds", type=float, default=5, help="of each measurement")
    encode.add_argument("--backend", default="onnxruntime", help="ours")
    encode.add_argument("--precision", default="fp32", help="ours")
    encode.add_argument("--openvino-ep-python", type=Path, default=Path(sys.executable), metavar="PYTHON",
                        help="one with onnxruntime-openvino, which shares no environment with onnxruntime")
    pre = commands.add_parser("preprocess", help="frame to tensor, on one thread")
    pre.add_argument("frames", type=Path)
    pre.add_argument("width", type=int)
    pre.add_argument("height", type=int)
    pre.add_argument("--size", type=int, default=224)
    pre.add_argument("--resize-to", type=int, default=224)
    pre.add_argument("--reps", type=int, default=200)
    for command in (job, decode, encode, pre):
        command.add_argument("--rounds", type=int, default=5)
        command.add_argument("--json", type=Path, metavar="FILE", help="keep all rounds here")
    for command in (decode, encode, pre):
        command.add_argument("--ours", metavar="CMD...", help="must come last; the peers alone without it")
    # Taken off first: argparse keeps neither a command's own options nor its closing `--`.
    own = sys.argv[1:]
    at = own.index("--ours") if "--ours" in own else len(own)
    args = parser.parse_args(own[:at])
    args.ours = own[at + 1:]
    if args.what == "preprocess" and not args.ours:
        pre.error("--ours is missing")
    if args.what == "decode":
        for peer in args.peers:
            if args.mode not in PEERS[peer]:
                decode.error(f"{peer} has no mode {args.mode}, only {', '.join(PEERS[peer])}")
    return args


#: What is run in each round, and the figures of one.
COMMANDS = {
    "job": (job_round, job_figures),
    "decode": (decode_round, decode_figures),
    "encode": (encode_round, encode_figures),
    "preprocess": (preprocess_round, preprocess_figures),
}


def settings(args: argparse.Namespace) -> dict[str, object]:
    """What a figure of decoding or encoding means nothing without."""
    keys = {"decode": ("mode", "passes"),
            "encode": ("batch", "threads", "seconds", "backend", "precision")}.get(args.what, ())
    return {key: getattr(args, key) for key in keys} | ({"model": args.model.name} if args.what == "encode" else {})


def main() -> None:
    args = parse_args()
    one_round, figures_of = COMMANDS[args.what]
    if args.what != "preprocess":
        warm_cache(args.model if args.what == "encode" else args.clips_dir)
    rounds: list[Round] = []
    for args.round in range(args.rounds):
        rounds.append(one_round(args))
        print(f"round {args.round + 1} of {args.rounds} done, load {os.getloadavg()[0]:.1f}", file=sys.stderr)

    figures = [figures_of(r) for r in rounds]
    width = max(map(len, figures[0]))
    print(f"{'':{width}} {'min':>9} {'median':>9} {'max':>9}")
    for name in sorted(figures[0], key=lambda n: n.startswith("ours/")):
        values = [f[name] for f in figures]
        print(f"{name:{width}} {min(values):9.2f} {statistics.median(values):9.2f} {max(values):9.2f}")
    if args.json:
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        kept = {"what": args.what, **settings(args), **machine, "rounds": rounds}
        args.json.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
