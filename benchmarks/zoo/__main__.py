"""Run the law over the zoos.

python -m benchmarks.zoo [--zoo timm] [--match regnet] [--seeds 3] [--jobs 2] [--peers] [--out out/zoo]
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import json

from rich.console import Console

from benchmarks.zoo import of_graphs, of_libraries, of_timm, of_torchvision, of_transformers, operators, peers
from benchmarks.zoo.entries import Entry
from benchmarks.zoo.processes import Job, run
from benchmarks.zoo.summary import merged, summary
from benchmarks.zoo.tables import show
from benchmarks.zoo.verdict import verdict, why
from benchmarks.zoo.worker import examine, warm_up

Row = dict[str, Any]
_LARGE = 2.5  # times the caps, for models that say so
ZOOS = {"torchvision": of_torchvision.entries, "timm": of_timm.entries, "transformers": of_transformers.entries}
ON_REQUEST = {"libraries": lambda: [*of_libraries.entries(), *of_graphs.entries()]}


def main() -> None:
    options = _options()
    console = Console(width=None if sys.stdout.isatty() else 220, soft_wrap=False)
    results = options.out / "results.jsonl"
    if options.summary:
        print(summary(*merged(_lines(folder / "results.jsonl") for folder in options.summary)))
        return
    if options.read:
        show([row for row in _lines(results) if re.search(options.match, row["name"])], console)
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # through every `finally`, so that no process is left behind
    operators.prepare()
    entries = [entry for zoo in options.zoo for entry in (ZOOS | ON_REQUEST)[zoo]()]
    chosen = [entry for entry in entries if re.search(options.match, entry.name)]
    if options.list:
        for entry in chosen:
            console.print(entry.zoo, entry.name, entry.kind)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    if any(entry.zoo == "transformers" for entry in chosen):
        of_transformers.prepare()
    warm_up()
    if options.peers:
        peers.warm_up()
    gc.freeze()  # what every model imports is imported here, once
    rows = _lines(results) if options.resume and results.exists() else []
    known = {(row["zoo"], row["name"]) for row in rows}
    chosen = [entry for entry in chosen if (entry.zoo, entry.name) not in known]
    options.commit = _commit()
    with results.open("a" if options.resume else "w") as file:
        for row in run([_job(entry, options) for entry in chosen], options.jobs):
            if options.peers and row.get("stage") not in ("build", "dense"):
                row["peer"] = _peer(next(e for e in chosen if (e.zoo, e.name) == (row["zoo"], row["name"])), options)
            rows.append(row)
            print(json.dumps(row | {"verdict": verdict(row)}), file=file, flush=True)
            line = f"{len(rows)}/{len(known) + len(chosen)} {_line(row)}"
            console.print(line, markup=False, highlight=False)
    show(rows, console)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__.splitlines()[0])
    parser.add_argument("--zoo", nargs="*", choices=[*ZOOS, *ON_REQUEST], default=list(ZOOS))
    parser.add_argument("--match", default="", help="only models whose name contains this regular expression")
    parser.add_argument("--seeds", type=int, default=3, help="random plans per model")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--patience", type=float, default=60.0, help="no further plan after so many CPU seconds")
    parser.add_argument("--seconds", type=float, default=120.0, help="cap on the CPU time of a model")
    parser.add_argument("--peer-seconds", type=float, default=60.0, help="the same for Torch-Pruning")
    parser.add_argument("--gigabytes", type=float, default=6.0, help="memory cap per model")
    parser.add_argument("--peers", action="store_true", help="Torch-Pruning on the same models")
    parser.add_argument("--out", type=Path, default=Path("out/zoo"), help="results.jsonl, and a log per model")
    parser.add_argument("--read", action="store_true", help="only show what is in --out")
    parser.add_argument("--summary", type=Path, nargs="+", metavar="OUT", help="Markdown tables of several --out")
    parser.add_argument("--resume", action="store_true", help="only models that --out has no row of")
    parser.add_argument("--list", action="store_true", help="only name the models")
    return parser.parse_args()


def _commit() -> str:
    """The commit of this file's repository, with a + if the files are not as committed."""
    here = {"cwd": Path(__file__).parent, "capture_output": True, "text": True, "check": False}
    head = subprocess.run(["git", "rev-parse", "--short", "HEAD"], **here).stdout.strip()
    changed = subprocess.run(["git", "status", "--porcelain", "--untracked-files=no"], **here).stdout.strip()
    return f"{head or 'unknown'}{'+' if changed else ''}"


def _line(row: Row) -> str:
    word = verdict(row)
    told = f"{row['zoo']} {row['name']} {word} {row['seconds']:.0f} s"
    return told if word == "exact" else f"{told}  {why(row)}"


def _lines(results: Path) -> list[Row]:
    return [json.loads(line) for line in results.read_text().splitlines()]


def _job(entry: Entry, options: argparse.Namespace) -> Job:
    path = options.out / entry.zoo / f"{entry.name.replace('/', '_')}.json"
    row = {"zoo": entry.zoo, "name": entry.name, "kind": entry.kind, "commit": options.commit}
    work = partial(examine, entry, seeds=options.seeds, patience=options.patience)
    return Job(row, work, path, *_caps(entry, options))


def _caps(entry: Entry, options: argparse.Namespace) -> tuple[float, float]:
    """Gigabytes and CPU seconds."""
    return (
        (_LARGE * options.gigabytes, _LARGE * options.seconds) if entry.large else (options.gigabytes, options.seconds)
    )


def _peer(entry: Entry, options: argparse.Namespace) -> Row:
    path = options.out / entry.zoo / f"{entry.name.replace('/', '_')}.peer.json"
    gigabytes, seconds = _caps(entry, options)
    return next(
        run([Job({}, partial(peers.torch_pruning, entry), path, gigabytes, min(seconds, options.peer_seconds))], 1)
    )


if __name__ == "__main__":
    main()
