"""A folder of vectors to index: rows, queries, and what an exact search finds.

    base.f16.npy                        N x D, unit rows in the order of their videos
    q_frame.f32.npy, q_text.f32.npy     1000 x D, unit rows
    truth_frame.u32.npy, truth_text.u32.npy   1000 x 100: the best rows by inner product, best first
    meta.json                           what they are

The truth is of the rows as stored: float16 made float32, multiplied in float32.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

KINDS_OF_QUERY = ("frame", "text")
N_TRUTH = 100
#: Rows multiplied at once, which bounds memory.
BLOCK_ROWS = 16_384


@dataclass(frozen=True)
class VectorSet:
    """The rows are mapped, the rest is in memory."""

    base: np.ndarray
    queries: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    meta: dict[str, object]


def open_set(folder: Path) -> VectorSet:
    return VectorSet(
        base=np.load(folder / "base.f16.npy", mmap_mode="r"),
        queries={kind: np.load(folder / f"q_{kind}.f32.npy") for kind in KINDS_OF_QUERY},
        truth={kind: np.load(folder / f"truth_{kind}.u32.npy") for kind in KINDS_OF_QUERY},
        meta=json.loads((folder / "meta.json").read_text()),
    )


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of unit length, float32."""
    rows = np.asarray(rows, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def recall(found: np.ndarray, truth: np.ndarray, k: int = 10) -> float:
    """The part of the exact top k that is among the k found, in the mean over queries."""
    hits = (found[:, :k, None] == truth[:, None, :k].astype(np.int64)).any(axis=1)
    return float(hits.mean())


def exact(base: np.ndarray, queries: np.ndarray, k: int = N_TRUTH) -> tuple[np.ndarray, np.ndarray]:
    """Rows and similarities of each query's k best; of equals the first row wins."""
    best_rows = np.empty((len(queries), 0), np.int64)
    best = np.empty((len(queries), 0), np.float32)
    for start in range(0, len(base), BLOCK_ROWS):
        scores = queries @ base[start : start + BLOCK_ROWS].astype(np.float32).T
        top = min(k, scores.shape[1])
        rows = np.argpartition(scores, -top, axis=1)[:, -top:]
        best = np.hstack([best, np.take_along_axis(scores, rows, axis=1)])
        best_rows = np.hstack([best_rows, rows + start])
        order = np.lexsort((best_rows, -best), axis=1)[:, :k]
        best, best_rows = np.take_along_axis(best, order, axis=1), np.take_along_axis(best_rows, order, axis=1)
    return best_rows, best
