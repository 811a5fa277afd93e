"""Times what others do between a decoder's I420 frame and a model's planar f32 input.

    preprocess.py FRAMES.i420 WIDTH HEIGHT [--size 224] [--resize-to 224] [--reps N] --json

FRAMES.i420 holds raw frames one after another. Prints the CPU microseconds an image on one thread:

    {"opencv": us, "torchvision": us, "pillow": us}

- opencv: cvtColor and INTER_CUBIC, which is not antialiased, so it does less than the others;
- torchvision: swscale to RGB, antialiased bicubic on uint8 (null where torch is not installed);
- pillow: swscale to RGB, bicubic, which in Pillow is always antialiased.

All resize the shorter side, crop the centre and normalize with CLIP's mean and deviation, by the
fastest way found for each library. Each figure is the median of 5 rounds, the peers in turn.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

# Before numpy and torch make their threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import av
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from pixels import BIAS, SCALE, Geometry, normalize

try:
    import torch
    from torchvision.transforms.v2 import functional as transforms
except ImportError:
    torch = None

ROUNDS = 5

Preprocess = Callable[[int], object]


def opencv_peer(raw: list[np.ndarray], to: Geometry) -> Preprocess:
    out = np.empty((3, to.size, to.size), np.float32)

    def preprocess(n: int) -> np.ndarray:
        rgb = cv2.cvtColor(raw[n], cv2.COLOR_YUV2RGB_I420)
        rgb = cv2.resize(rgb, (to.width, to.height), interpolation=cv2.INTER_CUBIC)
        return normalize(rgb[to.top : to.top + to.size, to.left : to.left + to.size], out)

    return preprocess


def torchvision_peer(frames: list[av.VideoFrame], to: Geometry) -> Preprocess:
    # One reformatter: a new one for each frame would set up swscale again.
    reformatter = VideoReformatter()
    scale, bias = (torch.from_numpy(v)[:, None, None] for v in (SCALE, BIAS))

    def preprocess(n: int) -> "torch.Tensor":
        rgb = reformatter.reformat(frames[n], format="rgb24", threads=1).to_ndarray()
        planes = torch.from_numpy(rgb).permute(2, 0, 1)
        bicubic = transforms.InterpolationMode.BICUBIC
        planes = transforms.resize(planes, [to.height, to.width], bicubic, antialias=True)
        planes = planes[:, to.top : to.top + to.size, to.left : to.left + to.size]
        return planes.to(torch.float32, memory_format=torch.contiguous_format).mul_(scale).add_(bias)

    return preprocess


def pillow_peer(frames: list[av.VideoFrame], to: Geometry) -> Preprocess:
    reformatter = VideoReformatter()
    out = np.empty((3, to.size, to.size), np.float32)

    def preprocess(n: int) -> np.ndarray:
        rgb = reformatter.reformat(frames[n], format="rgb24", threads=1).to_ndarray()
        image = Image.fromarray(rgb).resize((to.width, to.height), Image.Resampling.BICUBIC)
        image = image.crop((to.left, to.top, to.left + to.size, to.top + to.size))
        return normalize(np.asarray(image), out)

    return preprocess


def read_frames(path: Path, width: int, height: int) -> list[np.ndarray]:
    if width % 2 or height % 2:
        raise SystemExit(f"{path}: {width}x{height} is odd, these peers need even sizes")
    raw = np.fromfile(path, np.uint8)
    n_bytes = width * height * 3 // 2
    if raw.size == 0 or raw.size % n_bytes:
        raise SystemExit(f"{path}: has {raw.size} bytes, need a multiple of {n_bytes}")
    return list(raw.reshape(-1, height * 3 // 2, width))


def us_per_image(preprocess: Preprocess, n_frames: int, reps: int) -> float:
    start = time.process_time()
    for rep in range(reps):
        preprocess(rep % n_frames)
    return (time.process_time() - start) / reps * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("frames", type=Path, metavar="FRAMES.i420")
    parser.add_argument("width", type=int)
    parser.add_argument("height", type=int)
    parser.add_argument("--size", type=int, default=224, help="of the crop, in pixels")
    parser.add_argument("--resize-to", type=int, default=224, help="shorter side before the crop")
    parser.add_argument("--reps", type=int, default=200, help="images a round")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    if args.resize_to < args.size:
        parser.error(f"--resize-to is {args.resize_to}, but a crop of {args.size} needs at least {args.size}")

    cv2.setNumThreads(1)
    raw = read_frames(args.frames, args.width, args.height)
    # The decoder of a real run hands these over, so making them is not timed.
    frames = [av.VideoFrame.from_ndarray(f, format="yuv420p") for f in raw]
    to = Geometry(args.width, args.height, args.resize_to, args.size)
    peers: dict[str, Preprocess] = {"opencv": opencv_peer(raw, to), "pillow": pillow_peer(frames, to)}
    if torch is not None:
        torch.set_num_threads(1)
        peers["torchvision"] = torchvision_peer(frames, to)

    times: dict[str, list[float]] = {name: [] for name in peers}
    for name in peers:
        us_per_image(peers[name], len(frames), max(args.reps // 10, 3))
    for _ in range(ROUNDS):
        for name in peers:
            times[name].append(us_per_image(peers[name], len(frames), args.reps))
    medians = {name: statistics.median(times[name]) if name in times else None
               for name in ("opencv", "torchvision", "pillow")}
    if args.json:
        print(json.dumps(medians))
    else:
        for name, us in medians.items():
            print(f"{name:12} {'not installed' if us is None else f'{us:.0f} us'}")


if __name__ == "__main__":
    main()
