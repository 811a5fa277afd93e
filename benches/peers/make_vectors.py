"""Makes a folder of vectors to index (vector_set.py says what is in it).

    make_vectors.py OUT --kind synthetic --rows N [--dim 512] [--seed 1]
    make_vectors.py OUT --kind clips --run RUN --model MODEL_FOLDER [--rows N] [--seed 1]

- synthetic: see synthetic_vectors.py. The same arguments and NumPy make the same rows.
- clips: the frames of a finished run of clipmill, the first N of them (see run_vectors.py).

Synthetic rows are made in blocks: beyond the file's own pages, memory does not grow with them.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np

from run_vectors import run_vectors
from synthetic_vectors import FRAME, TEXT, synthetic
from vector_set import exact

N_QUERIES = 1000


def write_synthetic(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Writes the rows; returns the queries and what is to be said of them."""
    made = synthetic(args.rows, args.dim, args.seed, N_QUERIES)
    base = np.lib.format.open_memmap(args.out / "base.f16.npy", "w+", np.float16, (args.rows, args.dim))
    at = 0
    for block in made.blocks:
        base[at : at + len(block)] = block
        at += len(block)
    base.flush()
    return ({"frame": made.q_frame, "text": made.q_text},
            {"seed": args.seed, "frame_energy": FRAME, "text_energy": TEXT,
             "classes": (made.class_of_row, made.class_of_text)})


def write_clips(args: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict[str, object]]:
    """Writes the rows of a run; returns the queries and what is to be said of them."""
    made = run_vectors(args.run, args.model, args.seed, N_QUERIES)
    np.save(args.out / "base.f16.npy", made.base[: args.rows])
    return {"frame": made.q_frame, "text": made.q_text}, made.notes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--kind", choices=["synthetic", "clips"], required=True)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--run", type=Path, help="the folder of a finished run; for clips")
    parser.add_argument("--model", type=Path, help="the folder of its model; for clips")
    args = parser.parse_args()
    needed = {"synthetic": ["rows"], "clips": ["run", "model"]}[args.kind]
    for name in needed:
        if getattr(args, name) is None:
            parser.error(f"--{name} is missing")

    start = time.process_time()
    args.out.mkdir(parents=True, exist_ok=True)
    queries, notes = {"synthetic": write_synthetic, "clips": write_clips}[args.kind](args)
    base = np.load(args.out / "base.f16.npy", mmap_mode="r")
    classes = notes.pop("classes", None)
    meta = {"kind": args.kind, "rows": len(base), "dim": base.shape[1], "numpy": np.__version__, **notes}
    for kind, vectors in queries.items():
        rows, similarity = exact(base, vectors)
        np.save(args.out / f"q_{kind}.f32.npy", vectors)
        np.save(args.out / f"truth_{kind}.u32.npy", rows.astype(np.uint32))
        ranks = {f"cosine_{k}": round(float(similarity[:, k - 1].mean()), 4) for k in (1, 10, 100)}
        meta[kind] = {"queries": len(vectors), **ranks}
    if classes:
        of_row, of_text = classes
        right = of_row[np.load(args.out / "truth_text.u32.npy")[:, :10]] == of_text[:, None]
        meta["text"]["of_its_class_in_10"] = round(float(right.mean()), 4)
    (args.out / "meta.json").write_text(json.dumps(meta, indent=1) + "\n")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(meta), f"\n{time.process_time() - start:.0f} CPU s, {peak:.0f} MiB at the most")


if __name__ == "__main__":
    main()
