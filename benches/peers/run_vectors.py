"""Vectors of a finished run of clipmill: what its model saw in real pictures.

The rows are those of `frames/` in their order, without those that equal an earlier one bit by bit (still
pictures), among which no search could tell right from wrong. A thousand, chosen at random, are taken out and asked for;
their neighbours of the same clip stay. The text queries are the model's concept bank seen from its centre,
which is what `clipmill search` makes of those thousand words (stages/src/encode/joint.rs). A frame's vector
is a mean of the bank's, so these words lie nearer to frames than others would.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from vector_set import unit


@dataclass
class RunVectors:
    """Float16 rows as stored, and the queries."""

    base: np.ndarray
    q_frame: np.ndarray
    q_text: np.ndarray
    notes: dict[str, object]


def run_vectors(run: Path, model: Path, seed: int, n_queries: int) -> RunVectors:
    blocks, clips = [], []
    for shard in sorted((run / "frames").glob("*.parquet")):
        for batch in pq.ParquetFile(shard).iter_batches(columns=["clip_id", "embedding"]):
            vectors = batch.column("embedding")
            blocks.append(vectors.flatten().to_numpy().reshape(len(vectors), vectors.type.list_size))
            clips.append(batch.column("clip_id").to_numpy())
    rows, clip_of_row = np.vstack(blocks), np.concatenate(clips)
    # A picture without any known thing in it may have no direction.
    has_length = np.abs(np.linalg.norm(rows.astype(np.float32), axis=1) - 1) < 0.01
    n_read, rows, clip_of_row = len(rows), rows[has_length], clip_of_row[has_length]
    as_bytes = np.ascontiguousarray(rows).view(f"V{rows.shape[1] * 2}").reshape(-1)
    first = np.sort(np.unique(as_bytes, return_index=True)[1])
    rows, clip_of_row = rows[first], clip_of_row[first]
    if len(rows) <= n_queries:
        raise SystemExit(f"{run}: {len(rows)} frames, more than {n_queries} are needed")
    rng = np.random.default_rng(seed)
    asked = np.sort(rng.choice(len(rows), n_queries, replace=False))
    bank = np.load(model / "concepts.npy")
    words = unit(bank - bank.mean(axis=0))
    settings = json.loads((run / "run.json").read_text())
    notes = {"seed": seed, "model": model.name, "clips": len(np.unique(clip_of_row)),
             "clipmill": settings["clipmill"], "frames": n_read,
             "without_length": int((~has_length).sum()), "equal": int(has_length.sum()) - len(first)}
    return RunVectors(np.delete(rows, asked, axis=0), unit(rows[asked]), words[:n_queries], notes)
