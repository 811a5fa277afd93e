"""The job of `clipmill run` with the default model, as a careful Python program does it.

    pipeline.py CLIPS_DIR MODEL_DIR OUT_DIR [--decoders 2] [--threads 2] [--batch 8]
                [--resize pillow|torchvision|opencv] [--engine onnxruntime|openvino]
                [--precision fp32|bf16] --json

Decoder threads (PyAV, one thread a decoder) choose the frame shown every 500 ms and convert and
resize only those; the main thread gathers batches across clips for ONNX Runtime or OpenVINO and makes
ConSE vectors; a writer thread publishes Parquet shards. The queues between them are bounded, and PyAV,
Pillow, OpenCV, both engines and pyarrow release the interpreter's lock while they work. Prints
    {"clips": n, "rejected": n, "frames": n, "cpu_s": s, "cpu_total_s": s, "wall_s": s, "peak_mib": n}
where cpu_s and wall_s leave out imports and loading the model; cpu_total_s does not.
"""

import argparse
import json
import os
import queue
import resource
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

# numpy's matrix products are small here; its threads would only spin.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from av.video.reformatter import VideoReformatter
from PIL import Image

from clips import clips_in
from engines import PRECISIONS, open_engine
from sampling import shown_every

EVERY_MS = 500
SIZE, RESIZE_TO = 224, 256
TOP, TEMPERATURE = 100, 1.5
SHARD_ROWS = 16_384
# The model's (x - 127) / 128 as a table: the fastest way found from bytes to floats.
NORMALIZED = (np.arange(256, dtype=np.float32) - 127) / 128


@dataclass(slots=True)
class Sample:
    clip: Path
    frame_index: int
    pts_ns: int
    is_keyframe: bool
    planes: np.ndarray  # f32 [3, SIZE, SIZE]


def geometry(width: int, height: int) -> tuple[int, int, int, int]:
    """Size after resizing the shorter side, and the crop's left and top there."""
    shorter = min(width, height)
    width, height = width * RESIZE_TO // shorter, height * RESIZE_TO // shorter
    return width, height, (width - SIZE) // 2, (height - SIZE) // 2


def by_pillow(rgb: np.ndarray) -> np.ndarray:
    """Makes only what the crop keeps, which is the same pixels for less."""
    width, height, left, top = geometry(rgb.shape[1], rgb.shape[0])
    x, y = rgb.shape[1] / width, rgb.shape[0] / height
    box = (left * x, top * y, (left + SIZE) * x, (top + SIZE) * y)
    return np.asarray(Image.fromarray(rgb).resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box))


def by_torchvision(rgb: np.ndarray) -> np.ndarray:
    width, height, left, top = geometry(rgb.shape[1], rgb.shape[0])
    bicubic = transforms.InterpolationMode.BICUBIC
    planes = transforms.resize(torch.from_numpy(rgb).permute(2, 0, 1), [height, width], bicubic, antialias=True)
    return planes[:, top : top + SIZE, left : left + SIZE].permute(1, 2, 0).numpy()


def by_opencv(rgb: np.ndarray) -> np.ndarray:
    """Not antialiased: the cheapest, and on small frames near enough."""
    side = min(rgb.shape[:2]) * SIZE // RESIZE_TO
    top, left = ((n - side) // 2 for n in rgb.shape[:2])
    return cv2.resize(rgb[top : top + side, left : left + side], (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)


RESIZES = {"pillow": by_pillow, "torchvision": by_torchvision, "opencv": by_opencv}


def decode(clips: Iterator[Path], out: queue.Queue, resize: str) -> None:
    """One decoder thread; a bad clip is told of and passed over."""
    reformatter = VideoReformatter()
    try:
        for clip in clips:  # a list's iterator, which threads may share
            try:
                with av.open(str(clip)) as container:
                    for index, pts_ns, frame in shown_every(container, EVERY_MS):
                        rgb = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                        planes = np.empty((3, SIZE, SIZE), np.float32)
                        for n, plane in enumerate(cv2.split(RESIZES[resize](rgb))):
                            cv2.LUT(plane, NORMALIZED, dst=planes[n])
                        out.put(Sample(clip, index, pts_ns, frame.key_frame, planes))
                out.put(clip)
            except (av.FFmpegError, IndexError, ValueError) as error:
                print(f"rejected clip {clip}: {error}", file=sys.stderr)
                out.put(error)
    finally:
        out.put(None)


class Encoder:
    """The image model and the bridge to words."""

    def __init__(self, model_dir: Path, engine: str, precision: str, batch: int, threads: int) -> None:
        self.run = open_engine(engine, precision, model_dir / "image.onnx", "pixel_values",
                               (batch, 3, SIZE, SIZE), ["logits"], threads)
        bank = model_dir / "concepts.npy"
        # Without `clipmill model build`, the same work with no meaning.
        concepts = np.load(bank) if bank.exists() else np.random.default_rng(1).standard_normal((1000, 384))
        self.concepts = (concepts / np.linalg.norm(concepts, axis=1, keepdims=True)).astype(np.float32)
        self.centre = self.concepts.mean(axis=0)

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """f32 [n, 3, SIZE, SIZE] to unit vectors, f16 [n, joint dim]."""
        (logits,) = self.run(pixels)
        top = np.argpartition(logits, -TOP, axis=1)[:, -TOP:]
        best = np.take_along_axis(logits, top, axis=1)
        # Renormalized over the top, softmax's own sum cancels.
        weights = np.exp((best - best.max(axis=1, keepdims=True)) / TEMPERATURE)
        weights /= weights.sum(axis=1, keepdims=True)
        joint = np.einsum("nk,nkd->nd", weights, self.concepts[top]) - self.centre
        joint /= np.maximum(np.linalg.norm(joint, axis=1, keepdims=True), 1e-12)
        return joint.astype(np.float16)


def write_shard(out_dir: Path, number: int, samples: list[Sample], vectors: np.ndarray) -> None:
    """One shard: under a temporary name, flushed, then published."""
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1])
    table = pa.table({
        "path": pa.array([str(s.clip) for s in samples]).dictionary_encode(),
        "label": pa.array([s.clip.parent.name for s in samples]).dictionary_encode(),
        "frame_index": pa.array([s.frame_index for s in samples], pa.uint32()),
        "pts_ns": pa.array([s.pts_ns for s in samples], pa.int64()),
        "is_keyframe": pa.array([s.is_keyframe for s in samples], pa.bool_()),
        "embedding": embedding})
    out_dir.mkdir(parents=True, exist_ok=True)
    temporary, final = (out_dir / f"shard-{number:05}.{ext}" for ext in ("tmp", "parquet"))
    with temporary.open("wb") as file:
        pq.write_table(table, file, compression="zstd", compression_level=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(final)


def cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def index(args: argparse.Namespace, encoder: Encoder) -> dict[str, int]:
    """Runs all threads to the end and counts what went through."""
    clips = iter(clips_in(args.clips_dir))
    items: queue.Queue = queue.Queue(maxsize=4 * args.batch)
    for _ in range(args.decoders):
        threading.Thread(target=decode, args=(clips, items, args.resize), daemon=True).start()

    counts = {"clips": 0, "rejected": 0, "frames": 0}
    pixels = np.empty((args.batch, 3, SIZE, SIZE), np.float32)
    samples: list[Sample] = []
    vectors: list[np.ndarray] = []
    n_gathered, n_decoding, n_shards = 0, args.decoders, 0
    with ThreadPoolExecutor(max_workers=1) as writer:
        written: Future | None = None
        while n_decoding:
            item = items.get()
            if isinstance(item, Sample):
                pixels[n_gathered], item.planes = item.planes, None
                samples.append(item)
                n_gathered += 1
            elif item is None:
                n_decoding -= 1
            else:
                counts["clips" if isinstance(item, Path) else "rejected"] += 1
            if n_gathered == args.batch or (n_gathered and not n_decoding):
                vectors.append(encoder.encode(pixels[:n_gathered]))
                n_gathered = 0
            if samples and not n_gathered and (len(samples) >= SHARD_ROWS or not n_decoding):
                if written:
                    written.result()  # at most one shard waits
                written = writer.submit(write_shard, args.out_dir, n_shards, samples, np.concatenate(vectors))
                counts["frames"] += len(samples)
                n_shards, samples, vectors = n_shards + 1, [], []
        if written:
            written.result()  # raises what the writer met
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("clips_dir", "model_dir", "out_dir"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--decoders", type=int, default=2, help="decoder threads")
    parser.add_argument("--threads", type=int, default=2, help="the engine's threads")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--resize", choices=RESIZES, default="pillow")
    parser.add_argument("--engine", choices=["onnxruntime", "openvino"], default="onnxruntime")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="bf16 only with openvino")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    if args.resize == "torchvision":
        global torch, transforms  # seconds to import, so only where it is asked for
        import torch
        from torchvision.transforms.v2 import functional as transforms
        torch.set_num_threads(1)
    encoder = Encoder(args.model_dir, args.engine, args.precision, args.batch, args.threads)
    cpu_loaded, wall_loaded = cpu_s(), time.perf_counter()
    report: dict[str, float] = index(args, encoder)
    report |= {"cpu_s": cpu_s() - cpu_loaded, "cpu_total_s": cpu_s(), "wall_s": time.perf_counter() - wall_loaded}
    report["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(report) if args.json else "\n".join(f"{k:12} {v:.6g}" for k, v in report.items()))


if __name__ == "__main__":
    main()
