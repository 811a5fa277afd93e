"""Makes clips like UCF101's out of a few real ones.

    make_clips.py OUT_DIR N [--seed S] [--source CLIPS_DIR]

UCF101 cannot be fetched on every machine, so the benches can use clips shaped like it:
320x240, MPEG-4 part 2 in AVI, XVID or DIVX, 25 or 29.97 frames a second, 250 to 400 kbit/s,
keyframes 12 to 250 frames apart, B-frames in a third, 1.1 to 20 s long with a mean of about 7.2 s.
Their pictures are windows of the source clips, played to and fro from a random offset when the
source is too short. The same seed, sources and PyAV make the same bytes.
"""

import argparse
import random
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

WIDTH, HEIGHT = 320, 240
#: Taller sources are shrunk to this as they are read, which bounds memory and leaves room to zoom.
SOURCE_HEIGHT = 480
NAMES = ["Archery", "Biking", "Bowling", "Drumming", "Fencing", "Kayaking", "Rowing", "Skiing", "TaiChi", "YoYo"]
CLIPS_PER_GROUP = 4
EXTENSIONS = {".mp4", ".mpg", ".avi", ".mkv", ".mov", ".webm"}


def read_source(path: Path) -> list[np.ndarray]:
    """All pictures of a clip, RGB, at most `SOURCE_HEIGHT` lines high."""
    pictures = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            height = min(frame.height, SOURCE_HEIGHT)
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


def window(picture: np.ndarray, zoom: float, x: float, y: float) -> np.ndarray:
    """A 4:3 part of the picture, `zoom` times smaller than the largest, at WIDTH x HEIGHT."""
    height, width = picture.shape[:2]
    part_h = min(height, width * HEIGHT / WIDTH) / zoom
    part_w = part_h * WIDTH / HEIGHT
    left, top = int((width - part_w) * x), int((height - part_h) * y)
    part = picture[top : top + int(part_h), left : left + int(part_w)]
    filter_ = cv2.INTER_AREA if part_h > HEIGHT else cv2.INTER_CUBIC
    return cv2.resize(part, (WIDTH, HEIGHT), interpolation=filter_)


def write_clip(path: Path, pictures: list[np.ndarray], rng: random.Random) -> float:
    """Writes one clip and returns its duration in seconds."""
    rate = rng.choice([Fraction(25), Fraction(30000, 1001)])
    n_frames = max(2, round(duration_s(rng) * rate))
    indices = to_and_fro(len(pictures), rng.randrange(len(pictures)), n_frames)
    zoom, x, y, is_mirrored = rng.uniform(1.0, 1.3), rng.random(), rng.random(), rng.random() < 0.5
    with av.open(str(path), "w", format="avi") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate = rng.randrange(250_000, 400_000)
        context = stream.codec_context
        context.codec_tag = rng.choice(["XVID", "XVID", "DIVX"])
        context.gop_size = rng.choice([12, 12, 25, 50, 100, 250])
        context.max_b_frames = 2 if rng.random() < 1 / 3 else 0
        # Threads would cut the picture into slices, and their number into the bytes.
        context.thread_count = 1
        for n, index in enumerate(indices):
            picture = window(pictures[index], zoom, x, y)
            if is_mirrored:
                picture = np.ascontiguousarray(picture[:, ::-1])
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = n, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return float(n_frames / rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("n", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--source", type=Path, required=True, help="folder with clips to cut from")
    args = parser.parse_args()

    cv2.setNumThreads(1)
    paths = sorted(p for p in args.source.iterdir() if p.suffix.lower() in EXTENSIONS)
    if not paths:
        parser.error(f"{args.source}: no clips")
    sources = [read_source(p) for p in paths]
    total_s = total_bytes = 0
    for n in range(args.n):
        # Of the clip's number alone: N clips are the first N of any more.
        rng = random.Random(f"{args.seed}/{n}")
        name = NAMES[n // CLIPS_PER_GROUP % len(NAMES)]
        group = f"v_{name}_g{n // CLIPS_PER_GROUP // len(NAMES) + 1:02}"
        folder = args.out_dir / group
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{group}_c{n % CLIPS_PER_GROUP + 1:02}.avi"
        total_s += write_clip(path, rng.choice(sources), rng)
        total_bytes += path.stat().st_size
    print(f"{args.n} clips, mean {total_s / args.n:.2f} s, {total_bytes * 8 / total_s / 1000:.0f} kbit/s")


if __name__ == "__main__":
    main()
