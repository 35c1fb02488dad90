"""What a trained network is worth once it is pruned and repaired, before any training.

    python -m benchmarks.zero_epochs --data DIR --out zero_epochs.jsonl
    python -m benchmarks.zero_epochs --data DIR --out zero_epochs.jsonl --methods torch-pruning-taylor

The network is the dense one of recipe B' (ResNet-20 on CIFAR-10), the data are batches of its training set as recipe C
augments them, and the accuracy is that on all 10,000 test images. Every row is a line of ``--out``; the same command
trains what is missing, and prints the table. Figures: POST_TRAINING.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import niwaki
from benchmarks.accuracy import peers
from benchmarks.accuracy.protocol import commit
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.where import Where
from niwaki.post_training.iterative import REPAIRS

READERS = "-and-readers"  # at the end of a name: the weights that read a unit count, too
METHODS = (
    "magnitude",
    "taylor1",
    "taylor2",
    "activation",
    "surgeon",
    f"magnitude{READERS}",
    f"taylor1{READERS}",
    f"taylor2{READERS}",
)
PEERS = ("torch-pruning-taylor", "torch-pruning-magnitude")  # in up to STEPS cuts, Taylor scored again before each
STEPS = 200
OURS = "compensate"
SPACE = {"taylor1", "taylor2", "surgeon"}  # whose values are losses, and are compared in the whole space


def main() -> None:
    options = _options()
    where = Where(options.data, torch.device("cpu"), False)
    torch.set_num_threads(1)
    task = TASKS["cifar10-finetune-200-steps"](where, 0)
    given = task.batches(0)
    batches = [next(given) for _ in range(options.batches)]
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    asked = list(itertools.product(options.macs, options.rounds, options.methods, REPAIRS))
    own = [one for one in asked if one[2] not in PEERS]
    theirs = dict.fromkeys((macs, STEPS, name, how) for macs, _, name, how in asked if name in PEERS and how != OURS)
    for budget, rounds, method, repair in [*own, *theirs]:
        key = {"macs": budget, "rounds": rounds, "method": method, "repair": repair}
        if not any({**key, "batches": options.batches}.items() <= row.items() for row in rows):
            rows.append({**key, "batches": options.batches, **measured(task, batches, **key), "commit": commit()})
            with options.out.open("a") as file:
                print(json.dumps(rows[-1]), file=file, flush=True)
    print(table(rows))


def measured(task: Task, batches: list[Any], macs: float, rounds: int, method: str, repair: Any) -> Any:
    """The accuracy of the pruned network, its share of the MACs, and the CPU seconds of the pruning."""
    model = task.prepared(task.network()).eval()
    if method in PEERS:
        return _by_peer(task, model, batches, macs, rounds, method, repair)
    name = method.removesuffix(READERS)
    criterion = niwaki.Surgeon(batches, task.loss) if method == "surgeon" else name
    begin = time.process_time()
    pruned = niwaki.prune(
        *(model, task.example(), niwaki.Budget(macs=macs)),
        batches=batches,
        loss_fn=task.loss,
        method=criterion,
        rounds=rounds,
        repair=repair,
        compare="space" if name in SPACE else "group",
        readers=method != name,
    )
    seconds = time.process_time() - begin
    report = pruned.report
    share = report.small.macs / report.dense.macs
    return {"test": task.evaluate(pruned.model), "reached": share, "seconds": round(seconds, 1)}


def _by_peer(
    task: Task, model: nn.Module, batches: list[Any], macs: float, steps: int, method: str, repair: str
) -> dict[str, float]:
    """The same of a network that Torch-Pruning cuts, whose norms are re-estimated by our function or left alone."""
    begin, dense = time.process_time(), peers.macs_of(model, task)
    if method == "torch-pruning-taylor":
        peers.taylor(model, task, macs * dense, itertools.cycle(batches), steps)
    else:
        peers.magnitude(model, task, macs * dense, steps)
    if repair == "norms":
        niwaki.reestimate_norms(model, batches, task.loss)
    seconds = time.process_time() - begin
    reached = peers.macs_of(model, task) / dense
    return {"test": task.evaluate(model.eval()), "reached": reached, "seconds": round(seconds, 1)}


def table(rows: list[dict[str, Any]]) -> str:
    """Accuracies in per cent, a line for each choice and a column for each repair."""
    lines = [
        "| of the MACs | method | rounds | none | norms | compensate | s |",
        "| --- | --- | ---: " + "| ---: " * 4 + "|",
    ]
    keys = dict.fromkeys((row["macs"], row["method"], row["rounds"]) for row in rows)
    for macs, method, rounds in keys:
        found = {
            row["repair"]: row for row in rows if (row["macs"], row["method"], row["rounds"]) == (macs, method, rounds)
        }
        cells = [
            f"{100 * found[repair]['test']:.1f}" if repair in found else ""
            for repair in ("none", "norms", "compensate")
        ]
        seconds = max(row["seconds"] for row in found.values())
        lines.append(f"| {macs:.0%} | {method} | {rounds} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the accuracy benchmark's data")
    parser.add_argument("--out", type=Path, default=Path("out/zero_epochs.jsonl"))
    parser.add_argument("--macs", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=(*METHODS, *PEERS))
    parser.add_argument("--batches", type=int, default=8, help="of 128 images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
