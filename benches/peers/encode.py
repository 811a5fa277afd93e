"""Runs a model's image tower in a bare loop, and prints what it cost.

    encode.py MODEL_FOLDER [--engine onnxruntime|openvino-ep|openvino] [--precision fp32|bf16]
              [--batch 8] [--threads 1] [--seconds 5] [--dump FILE.npy]

    {"engine": e, "precision": p, "batch": n, "threads": n, "images": n, "cpu_s": s, "wall_s": s}

cpu_s is the CPU time of all the process's threads in the timed loop alone: no start, no compiling, and
three batches to warm up come before it. The input is one batch of fixed numbers, the same in every
program that wants to compare vectors (`--dump`): see `pixels`.
"""

import argparse
import json
import os
import time
import tomllib
from pathlib import Path

# numpy's own threads have nothing to do here.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from engines import ENGINES, PRECISIONS, open_engine

WARM_UP = 3


def pixels(shape: tuple[int, ...]) -> np.ndarray:
    """f32 in [-1, 1): value i is the hash of i (Wellons's lowbias32), its upper 24 bits / 2^23 - 1."""
    x = np.arange(np.prod(shape), dtype=np.uint32)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    x ^= x >> np.uint32(16)
    return ((x >> np.uint32(8)).astype(np.float32) / np.float32(1 << 23) - 1).reshape(shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER")
    parser.add_argument("--engine", choices=ENGINES, default="onnxruntime")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=5.0, help="of the clock")
    parser.add_argument("--dump", type=Path, metavar="FILE.npy", help="the batch's embeddings, f32 [batch, dim]")
    args = parser.parse_args()

    image = tomllib.loads((args.model / "model.toml").read_text())["image"]
    batch = pixels((args.batch, 3, image["height"], image["width"]))
    # All that clipmill asks the model for.
    outputs = [image["embedding"], *([image["logits"]] if "logits" in image else [])]
    run = open_engine(args.engine, args.precision, args.model / image["file"], image["input"], batch.shape,
                      outputs, args.threads)
    for _ in range(WARM_UP):
        embeddings = run(batch)[0]
    if args.dump:
        np.save(args.dump, embeddings)

    images, cpu, wall = 0, time.process_time(), time.perf_counter()
    while time.perf_counter() - wall < args.seconds:
        run(batch)
        images += args.batch
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - wall
    print(json.dumps({"engine": args.engine, "precision": args.precision, "batch": args.batch,
                      "threads": args.threads, "images": images, "cpu_s": cpu_s, "wall_s": wall_s}))


if __name__ == "__main__":
    main()
