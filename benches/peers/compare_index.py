"""Runs our vector index and a peer's in turn and prints the ratios at equal or better recall.

    compare_index.py DIR --peer NAME... [--lists 4000] [--rounds 5] [--index FOLDER] [--json FILE] --ours CMD...

CMD gets DIR added and prints the lines of index.py (which see) as JSON; other lines it prints are skipped.
In each round ours and each peer run once, changing places. With `--index` a peer builds once and keeps its
files there; without, it builds in every round.

The rule, for each kind of query and each batch: of our settings that reach the recall aimed at (0.99 for
frames, 0.98 for texts; our best recall where none does) the fastest in the median of rounds is ours. Of the
peer's settings with at least our setting's recall, the fastest is the peer's; where none has it, the fastest
of those within 0.0005 of the peer's best recall, and the line says `below ours`. Beside it stands, where the
peer reaches the recall aimed at, the ratio to its fastest setting that does, which may find less than ours.
Ratios are taken within a round; above 1 is in our favour.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

from index_peers import PEERS

HERE = Path(__file__).parent
AIMS = {"frame": 0.99, "text": 0.98}
#: Less than this is the same recall.
SAME_RECALL = 0.0005

Line = dict[str, object]
Key = tuple[str, int, str]


def run_lines(command: list[str]) -> list[Line]:
    out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    if not any(line.get("what") == "search" for line in lines):
        raise SystemExit(f"{' '.join(command)}: printed no line of a search")
    return lines


def searches(lines: list[Line]) -> dict[Key, Line]:
    """By kind of query, batch and setting."""
    return {(line["queries"], line["batch"], json.dumps(line["setting"], sort_keys=True)): line
            for line in lines if line["what"] == "search"}


def medians(rounds: list[dict[Key, Line]], kind: str, batch: int) -> dict[str, tuple[float, float]]:
    """Recall and speed of each setting that all rounds have."""
    common = set.intersection(*(set(r) for r in rounds))
    return {key[2]: tuple(statistics.median(r[key][name] for r in rounds) for name in ("recall", "per_cpu_s"))
            for key in common if key[:2] == (kind, batch)}


def fastest(settings: dict[str, tuple[float, float]], aim: float) -> tuple[str, bool]:
    """The fastest setting with the recall aimed at, and whether there is one."""
    reached = {s: v for s, v in settings.items() if v[0] >= aim}
    best = max(recall for recall, _ in settings.values())
    allowed = reached or {s: v for s, v in settings.items() if v[0] >= best - SAME_RECALL}
    return max(allowed, key=lambda s: allowed[s][1]), bool(reached)


def print_searches(ours: list[dict[Key, Line]], theirs: list[dict[Key, Line]]) -> None:
    kinds = sorted({key[:2] for key in ours[0]})
    for kind, batch in kinds:
        our_settings, peer_settings = medians(ours, kind, batch), medians(theirs, kind, batch)
        if not peer_settings:
            continue
        mine, _ = fastest(our_settings, AIMS[kind])
        recall = our_settings[mine][0]
        other, is_reached = fastest(peer_settings, recall)

        def ratios_to(setting: str) -> list[float]:
            return [a[kind, batch, mine]["per_cpu_s"] / b[kind, batch, setting]["per_cpu_s"]
                    for a, b in zip(ours, theirs, strict=True)]

        ratios = ratios_to(other)
        told = "" if is_reached else "  below ours"
        aimed, is_aimed = fastest(peer_settings, AIMS[kind])
        if is_aimed and aimed != other:
            told += f"  at the aim {statistics.median(ratios_to(aimed)):.2f} {aimed} @ {peer_settings[aimed][0]:.4f}"
        print(f"  {kind:5} {batch} a call  ours {our_settings[mine][1]:8.0f} @ {recall:.4f} {mine}"
              f"  peer {peer_settings[other][1]:8.0f} @ {peer_settings[other][0]:.4f} {other}"
              f"  ratio {min(ratios):.2f} {statistics.median(ratios):.2f} {max(ratios):.2f}{told}")


def print_rest(ours: list[list[Line]], theirs: list[list[Line]]) -> None:
    """Building, opening and memory: medians, the peer's over ours."""
    for what, name in (("build", "cpu_s"), ("build", "bytes"), ("build", "rss_mib"), ("open", "ms"),
                       ("search", "rss_mib")):
        figures = []
        for rounds in (ours, theirs):
            # The quicker way of opening, the most memory of searching.
            pick = max if what == "search" else min
            values = [[line[name] for line in lines if line["what"] == what and name in line] for lines in rounds]
            figures.append([pick(v) for v in values if v])
        if all(figures):
            mine, other = (statistics.median(f) for f in figures)
            print(f"  {what} {name}: ours {mine:.4g}, peer {other:.4g}, peer/ours {other / mine:.2f}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--peer", nargs="+", choices=PEERS, required=True)
    parser.add_argument("--lists", type=int, default=4000, help="the peer's; give ours with CMD")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--index", type=Path, metavar="FOLDER", help="peers keep their files here")
    parser.add_argument("--out", "--json", type=Path, metavar="FILE", help="keep all rounds here")
    parser.add_argument("--ours", metavar="CMD...", help="must come last")
    # Taken off first: argparse keeps neither a command's own options nor its closing `--`.
    own = sys.argv[1:]
    at = own.index("--ours") if "--ours" in own else len(own)
    args = parser.parse_args(own[:at])
    args.ours = own[at + 1 :]
    if not args.ours:
        parser.error("--ours is missing")
    return args


def peer_command(args: argparse.Namespace, peer: str) -> list[str]:
    command = [sys.executable, str(HERE / "index.py"), str(args.dir), "--peer", peer,
               "--lists", str(args.lists), "--json"]
    if args.index:
        args.index.mkdir(parents=True, exist_ok=True)
        command += ["--index", str(args.index / f"{args.dir.resolve().name}-{args.lists}-{peer}")]
    return command


def main() -> None:
    args = parse_args()
    commands = {"ours": [*args.ours, str(args.dir)]} | {peer: peer_command(args, peer) for peer in args.peer}
    rounds: list[dict[str, list[Line]]] = []
    for n in range(args.rounds):
        names = list(reversed(commands)) if n % 2 else list(commands)
        rounds.append({name: run_lines(commands[name]) for name in names})
        print(f"round {n + 1} of {args.rounds} done, load {os.getloadavg()[0]:.1f}", file=sys.stderr)
    ours = [r["ours"] for r in rounds]
    for peer in args.peer:
        theirs = [r[peer] for r in rounds]
        print(f"{peer}: queries a CPU second; ratios least, median, most")
        print_searches([searches(lines) for lines in ours], [searches(lines) for lines in theirs])
        print_rest(ours, theirs)
    if args.out:
        meta = json.loads((args.dir / "meta.json").read_text())
        machine = {"machine": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
        kept = {"what": "index", "vectors": meta, "lists": args.lists, **machine, "rounds": rounds}
        args.out.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
