"""Builds and searches a peer's vector index on one thread and prints a line a setting.

    index.py DIR --peer NAME [--lists 4000] [--index FILE] [--json]

DIR is made by make_vectors.py, the peers are in index_peers.py. The lines, JSON with `--json`:

    {"what": "build", "cpu_s": s, "bytes": n, "rss_mib": n}
    {"what": "open", "ms": ms, "how": "read" or "map"}
    {"what": "search", "queries": "frame" or "text", "setting": {..}, "batch": 1 or 8, "recall": r,
     "per_cpu_s": n, "rss_mib": n}

Building goes from the mapped float16 rows to a file written whole, `bytes` long, in a process of its own;
`--index` keeps that file and uses it where it is there. `ms` includes the answer to a first query, and
the file is in the page cache. Recall is that of the best ten over all queries. Queries a CPU second are the
median of three stretches of 0.4 s and more, all threads' and the kernel's time counted. `rss_mib` is the
process's peak; Python and the library are some 60 of it.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from index_peers import PEERS  # first: it sets the number of threads

import numpy as np

from vector_set import VectorSet, open_set, recall

K = 10
BATCHES = (1, 8)
STRETCHES, STRETCH_S = 3, 0.4
#: More visited than this gained too little: the later settings are left out.
LEAST_GAIN = 0.0005


def peak_mib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def build(vectors: VectorSet, peer: object, lists: int, path: Path) -> dict[str, object]:
    start = time.process_time()
    peer.build(vectors.base, lists)
    peer.save(path)
    return {"what": "build", "cpu_s": time.process_time() - start, "bytes": path.stat().st_size,
            "rss_mib": peak_mib(), "about": peer.about}


def openings(peer: object, path: Path, query: np.ndarray) -> list[dict[str, object]]:
    """Mapped, where the peer can, and read; what was read stays open."""
    lines = []
    for is_mapped in (True, False):
        times = []
        try:
            for _ in range(3 if is_mapped else 1):
                start = time.perf_counter()
                peer.open(path, query.shape[1], is_mapped)
                peer.use(peer.sweeps[0][0])
                peer.search(query, K)
                times.append(1e3 * (time.perf_counter() - start))
        except RuntimeError:
            continue
        lines.append({"what": "open", "ms": statistics.median(times), "how": "map" if is_mapped else "read"})
    return lines


def queries_a_cpu_s(peer: object, queries: np.ndarray, batch: int) -> float:
    speeds, at = [], 0
    for _ in range(STRETCHES):
        start, n = time.process_time(), 0
        while (spent := time.process_time() - start) < STRETCH_S:
            for _ in range(8 // batch):
                peer.search(queries[at : at + batch], K)
                at = (at + batch) % (len(queries) - batch + 1)
                n += batch
        speeds.append(n / spent)
    return statistics.median(speeds)


def searches(peer: object, vectors: VectorSet) -> Iterator[dict[str, object]]:
    for kind, sweep in [(kind, sweep) for kind in vectors.queries for sweep in peer.sweeps]:
        queries, recalls = vectors.queries[kind], []
        for setting in sweep:
            peer.use(setting)
            recalls.append(recall(peer.search(queries, K), vectors.truth[kind]))
            for batch in BATCHES:
                speed = queries_a_cpu_s(peer, queries, batch)
                yield {"what": "search", "queries": kind, "setting": setting, "batch": batch,
                       "recall": recalls[-1], "per_cpu_s": speed, "rss_mib": peak_mib()}
            if len(recalls) > 2 and recalls[-1] - recalls[-3] < LEAST_GAIN:
                break


def show(line: dict[str, object], is_json: bool) -> None:
    def short(value: object) -> object:
        return round(value, 4 if value < 2 else 1) if isinstance(value, float) else value

    line = {key: short(value) for key, value in line.items()}
    print(json.dumps(line) if is_json else "  ".join(f"{k} {v}" for k, v in line.items() if k != "what"), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--peer", choices=PEERS, required=True)
    parser.add_argument("--lists", type=int, default=4000, help="of an IVF index")
    parser.add_argument("--index", type=Path, metavar="FILE", help="keep it here, or use it")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only-build", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.only_build:
        print(json.dumps(build(open_set(args.dir), PEERS[args.peer](), args.lists, args.index)))
        return
    with tempfile.TemporaryDirectory(prefix="index-") as temporary:
        path = args.index or Path(temporary) / "index"
        if not path.exists():
            command = [sys.executable, __file__, str(args.dir), "--peer", args.peer, "--lists", str(args.lists),
                       "--index", str(path), "--only-build"]
            show(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout), args.json)
        vectors, peer = open_set(args.dir), PEERS[args.peer]()
        for line in openings(peer, path, vectors.queries["frame"][:1]):
            show(line, args.json)
        for line in searches(peer, vectors):
            show(line, args.json)


if __name__ == "__main__":
    main()
