"""Writes vectors as clipmill's `frames/` with pyarrow, on one thread, and prints what it costs.

    parquet_write.py DIR [--kinds f16 f32] [--passes 3] [--keep FOLDER]

The columns are those of stages/src/index/schema.rs: row groups of 16,384, zstd 1, batches of 2,048 rows, no
dictionary for vectors.

- f16: fixed-size lists of float16, plain, as clipmill writes them.
- f32: fixed-size lists of float32, byte-stream-split. The rows are made unit again, which fills the digits
  that float16 has not: else they would compress as no model's vectors do.

A line each: {"kind": k, "rows": n, "cpu_s": s, "rows_per_cpu_s": n, "bytes_per_row": b, "rss_mib": n}. CPU
seconds are the median of passes, of making the batches out of the mapped rows, writing and closing; the
float32 values are made before. Each kind runs in a process of its own, whose peak `rss_mib` is; the mapped
rows' pages are let go as they are written, as they are no part of writing. Python and pyarrow are some 80 of it.
"""

import argparse
import json
import mmap
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vector_set import unit

GROUP_ROWS, BATCH_ROWS = 16_384, 2_048
FRAMES_A_CLIP, FRAME_NS = 16, 500_000_000
KINDS = {"f16": pa.float16(), "f32": pa.float32()}


def schema(kind: str, dim: int) -> pa.Schema:
    element = pa.field("element", KINDS[kind], nullable=False)
    return pa.schema([
        pa.field("clip_id", pa.uint64(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("label", pa.string()),
        pa.field("frame_index", pa.uint32(), nullable=False),
        pa.field("pts_ns", pa.int64(), nullable=False),
        pa.field("is_keyframe", pa.bool_(), nullable=False),
        pa.field("embedding", pa.list_(element, dim), nullable=False),
    ], metadata={"clipmill.schema_version": "1"})


def batch_of(own: pa.Schema, start: int, vectors: np.ndarray) -> pa.RecordBatch:
    rows = np.arange(start, start + len(vectors))
    clips, frames = rows // FRAMES_A_CLIP, rows % FRAMES_A_CLIP
    values = pa.array(vectors.reshape(-1))
    columns = [
        pa.array(clips.astype(np.uint64)),
        pa.array([f"clips/v_{c // 25:04}/v_{c:07}.avi" for c in clips]),
        pa.array([f"class {c // 25 % 101}" for c in clips]),
        pa.array((frames * 12).astype(np.uint32)),
        pa.array(frames * FRAME_NS),
        pa.array(frames % 4 == 0),
        pa.FixedSizeListArray.from_arrays(values, type=own.field("embedding").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=own)


def groups(base: np.ndarray, kind: str) -> Iterator[tuple[int, np.ndarray]]:
    """A row group's vectors at a time, copied out of the file's pages."""
    for start in range(0, len(base), GROUP_ROWS):
        rows = np.array(base[start : start + GROUP_ROWS])
        yield start, unit(rows) if kind == "f32" else rows
        base._mmap.madvise(mmap.MADV_DONTNEED)  # noqa: SLF001: NumPy has no other way to it


def write(base: np.ndarray, kind: str, path: Path) -> float:
    """CPU seconds of all but making the float32 values."""
    own = schema(kind, base.shape[1])
    vectors = "embedding.list.element"
    others = [f.name for f in own if f.name != "embedding"]
    options = {"use_byte_stream_split": [vectors]} if kind == "f32" else {}
    start = time.process_time()
    made = 0.0
    with pq.ParquetWriter(path, own, compression="zstd", compression_level=1, use_dictionary=others,
                          **options) as writer:
        at = time.process_time()
        for first, rows in groups(base, kind):
            made += time.process_time() - at
            # Each call ends a row group, so the batches of one are gathered first.
            batches = [batch_of(own, first + offset, rows[offset : offset + BATCH_ROWS])
                       for offset in range(0, len(rows), BATCH_ROWS)]
            writer.write_table(pa.Table.from_batches(batches), row_group_size=GROUP_ROWS)
            at = time.process_time()
    return time.process_time() - start - made


def measure(args: argparse.Namespace, kind: str) -> dict[str, object]:
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    base = np.load(args.dir / "base.f16.npy", mmap_mode="r")
    with tempfile.TemporaryDirectory(prefix="parquet-") as temporary:
        path = (args.keep or Path(temporary)) / f"frames-{kind}.parquet"
        cpu_s = statistics.median(write(base, kind, path) for _ in range(args.passes))
        file = pq.ParquetFile(path)
        biggest = max(file.metadata.row_group(n).num_rows for n in range(file.num_row_groups))
        return {"kind": kind, "rows": len(base), "cpu_s": round(cpu_s, 2), "rows_per_cpu_s": round(len(base) / cpu_s),
                "bytes_per_row": round(path.stat().st_size / len(base), 1), "row_group": biggest,
                "rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="leave the files there")
    parser.add_argument("--only", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        print(json.dumps(measure(args, args.kinds[0])))
        return
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for kind in args.kinds:
        command = [sys.executable, __file__, str(args.dir), "--only", "--kinds", kind, "--passes", str(args.passes)]
        command += ["--keep", str(args.keep)] if args.keep else []
        subprocess.run(command, check=True, env=environment)


if __name__ == "__main__":
    main()
