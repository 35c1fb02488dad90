"""What a trained network is worth once it is pruned and repaired, before any training.

    python -m benchmarks.zero_epochs --data DIR --out zero_epochs.jsonl
    python -m benchmarks.zero_epochs --data DIR --out zero_epochs.jsonl --methods torch-pruning-taylor
    python -m benchmarks.zero_epochs --data DIR --network stories --params 0.82 0.65 0.5 --methods surgeon --rounds 4
    python -m benchmarks.zero_epochs --network vit --methods surgeon cap magnitude

``resnet20``: the dense network of recipe B' on CIFAR-10, ``stories``: the Llama of recipe D, ``vit``: a ViT on the
digits, trained at the first call, and kept beside ``--out``. Data are batches of the training set as the fine-tuning
recipe augments them; the accuracy is that on all test images, and for the language model the table has the perplexity
over that of the dense network. Every row is a line of ``--out``; the same command measures what is missing, and prints
the table. Figures: POST_TRAINING.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn

import niwaki
from benchmarks.accuracy import peers
from benchmarks.accuracy.protocol import commit
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.tasks import TASKS
from benchmarks.accuracy.training import Training
from benchmarks.accuracy.where import Where
from niwaki.networks.torchvision_cpu import load
from niwaki.post_training.iterative import REPAIRS

NETWORKS = {"resnet20": "cifar10-finetune-200-steps", "stories": "stories", "vit": "digits-vit"}  # and their tasks
READERS = "-and-readers"  # at the end of a name: the weights that read a unit count, too
CRITERIA = ("random", "magnitude", "taylor1", "taylor2", "activation", "small_contributions")
METHODS = (*CRITERIA, "surgeon", "cap", *(f"{name}{READERS}" for name in ("magnitude", "taylor1", "taylor2")))
PEERS = ("torch-pruning-taylor", "torch-pruning-magnitude")  # in up to STEPS cuts, Taylor scored again before each
STEPS = 200
OURS = "compensate"
SPACE = {"taylor1", "taylor2", "surgeon", "cap", "small_contributions"}  # whose values mean the same in all groups


def main() -> None:
    options = _options()
    if options.network == "stories":
        load()
    where = Where(options.data, torch.device("cpu"), False)
    torch.set_num_threads(1)
    task = TASKS[NETWORKS[options.network]](where, 0)
    trained = options.out.parent / f"{options.network}.safetensors"
    model = network(task, trained if options.network == "vit" else None)
    given = task.batches(0)
    batches = [next(given) for _ in range(options.batches)]
    more = [*batches, *(next(given) for _ in range(options.repair_batches - options.batches))]
    dense = task.evaluate(model)
    same = {
        "network": options.network,
        "batches": options.batches,
        "repair_batches": len(more),
        "dense": dense,
        "refine": options.refine,
    }
    rows = [json.loads(line) for line in options.out.read_text().splitlines()] if options.out.exists() else []
    budgets = [("macs", share) for share in options.macs] + [("params", share) for share in options.params]
    asked = list(itertools.product(budgets, options.rounds, options.methods, options.repairs))
    own = [one for one in asked if one[2] not in PEERS]
    theirs = dict.fromkeys((limit, STEPS, name, how) for limit, _, name, how in asked if name in PEERS and how != OURS)
    for (measure, share), rounds, method, repair in [*own, *theirs]:
        key = {"measure": measure, "share": share, "rounds": rounds, "method": method, "repair": repair, **same}
        if not any(key.items() <= row.items() for row in rows):
            found = (
                by_peer(task, network(task, trained), batches, measure, share, rounds, method, repair)
                if method in PEERS
                else pruned(task, model, batches, more, options.refine, measure, share, rounds, method, repair)
            )
            rows.append({**key, **found, "commit": commit()})
            with options.out.open("a") as file:
                print(json.dumps(rows[-1]), file=file, flush=True)
    print(table([row for row in rows if same.items() <= row.items()], task.measure))


def network(task: Task, kept: Path | None) -> nn.Module:
    """The dense network, trained: the task's own, or the one in the file ``kept``, which is made where it misses."""
    model = task.prepared(task.network())
    if kept is None or task.name != NETWORKS["vit"]:
        return model.eval()
    if not kept.exists():
        run = Training(task, 0)
        run.advance()
        kept.parent.mkdir(parents=True, exist_ok=True)
        save_model(run.model, str(kept))
    load_model(model, kept)
    return model.eval()


def pruned(
    task: Task,
    model: nn.Module,
    batches: list[Any],
    more: list[Any],
    refine: int,
    measure: str,
    share: float,
    rounds: int,
    method: str,
    repair: Any,
) -> dict[str, float]:
    """The measure of the pruned network, its share of the cost, and the CPU seconds of the pruning."""
    name = method.removesuffix(READERS)
    begin = time.process_time()
    small = niwaki.prune(
        *(model, task.example(), niwaki.Budget(**{measure: share})),
        batches=batches,
        loss_fn=task.loss,
        method=name,
        rounds=rounds,
        repair=repair,
        refine=refine,
        repair_batches=more,
        compare="space" if name in SPACE else "group",
        readers=method != name,
    )
    seconds = time.process_time() - begin
    costs = small.report.small, small.report.dense
    reached = getattr(costs[0], measure) / getattr(costs[1], measure)
    return {"test": task.evaluate(small.model), "reached": reached, "seconds": round(seconds, 1)}


def by_peer(
    task: Task,
    model: nn.Module,
    batches: list[Any],
    measure: str,
    share: float,
    steps: int,
    method: str,
    repair: str,
) -> dict[str, float]:
    """The same of a network that Torch-Pruning cuts, whose norms are re-estimated by our function or left alone."""
    if measure != "macs":
        raise SystemExit("Torch-Pruning is cut to a share of the MACs: give --macs, and --params with no share.")
    begin, dense = time.process_time(), peers.macs_of(model, task)
    if method == "torch-pruning-taylor":
        peers.taylor(model, task, share * dense, itertools.cycle(batches), steps)
    else:
        peers.magnitude(model, task, share * dense, steps)
    if repair == "norms":
        niwaki.reestimate_norms(model, batches, task.loss)
    seconds = time.process_time() - begin
    reached = peers.macs_of(model, task) / dense
    return {"test": task.evaluate(model.eval()), "reached": reached, "seconds": round(seconds, 1)}


def table(rows: list[dict[str, Any]], measure: str) -> str:
    """Accuracies in per cent, or perplexities over that of the dense network: a line for each choice and a column for
    each repair."""
    lines = [
        "| of the | method | rounds | none | norms | compensate | s |",
        "| --- | --- | ---: " + "| ---: " * 4 + "|",
    ]
    keys = dict.fromkeys((row["measure"], row["share"], row["method"], row["rounds"]) for row in rows)
    for key in keys:
        found = {
            row["repair"]: row for row in rows if (row["measure"], row["share"], row["method"], row["rounds"]) == key
        }
        order = ("none", "norms", "compensate")
        cells = [shown(found[repair], measure) if repair in found else "" for repair in order]
        seconds = max(row["seconds"] for row in found.values())
        lines.append(f"| {key[1]:.0%} {key[0]} | {key[2]} | {key[3]} | {' | '.join(cells)} | {seconds:.0f} |")
    return "\n".join(lines)


def shown(row: dict[str, Any], measure: str) -> str:
    """One accuracy, or one perplexity over the dense one."""
    return f"{100 * row['test']:.1f}" if measure == "accuracy" else f"{math.exp(row['test'] - row['dense']):.2f}"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="the folder of the accuracy benchmark's data; not for vit")
    parser.add_argument("--out", type=Path, default=Path("out/zero_epochs.jsonl"))
    parser.add_argument("--network", choices=tuple(NETWORKS), default="resnet20")
    parser.add_argument("--macs", type=float, nargs="*", help="shares; 0.7 and 0.5 unless --params is given")
    parser.add_argument("--params", type=float, nargs="*", default=[])
    parser.add_argument("--rounds", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=(*METHODS, *PEERS))
    parser.add_argument("--repairs", nargs="+", default=list(REPAIRS), choices=REPAIRS)
    parser.add_argument("--batches", type=int, default=8, help="that scores see")
    parser.add_argument("--repair-batches", type=int, default=0, help="that the last repair sees: these, and more")
    parser.add_argument("--refine", type=int, default=0, help="sweeps of niwaki.refine, of one round")
    options = parser.parse_args()
    if options.macs is None:
        options.macs = [] if options.params else [0.7, 0.5]
    options.out.parent.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    main()
