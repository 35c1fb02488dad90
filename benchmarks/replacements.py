"""The law of implants, of union streams and of both, alone and with erasures, on many random plans.

python benchmarks/replacements.py [--readers] [--plans 1000] [--first 0] [--networks blocks residual resnet vit ...]

Each plan removes a fifth of the units at random. By the number of the plan it has in addition: union streams (three
fifths of the channels of every writer, and with ``--readers`` of what every branch reads), implants (a third of the
units that can be: kernels of 3 and 5 at strides of 1 and 2, linear layers of rank 2), or both; and every second plan
erases up to two structures. The table has, by network and kind, the largest difference of outputs (eval and train mode)
and of the gradient by the input between the cut network and the masked one, in float64, relative to the largest; and
how often parameters and multiply-accumulates are not those that were counted for the plan.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import torch
from replacements import NETWORKS, Case

import niwaki
from niwaki.errors import NiwakiError

KINDS = ("remove", "union", "implants", "union and implants")
OUTPUTS, GRADIENTS = 1e-10, 1e-8


def kind_of(number: int) -> tuple[str, dict[str, bool]]:
    """What plan ``number`` has, in words and as arguments."""
    kind, erase = KINDS[number % 4], bool(number // 4 % 2)
    told = f"{kind}, erased" if erase else kind
    return told, {"erase": erase, "union": "union" in kind, "implants": "implants" in kind}


def costs_differ(case: Case, plan: niwaki.Plan) -> bool:
    """Whether a new analysis of the cut network counts something else."""
    told, found = (
        case.space.cost(plan),
        niwaki.search_space(niwaki.cut(case.network, plan), case.x, rehearse=False).cost(),
    )
    return (told.params, told.macs) != (found.params, found.macs)


def main() -> None:
    """Print a row per network and kind, and the plans that fail."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--readers", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    cases = {name: Case.of(name, given.readers) for name in given.networks}
    worst: dict[tuple[str, str], list[float]] = {}
    failed, begun = 0, time.process_time()
    for number in range(given.first, given.first + given.plans):
        name = given.networks[number // 8 % len(given.networks)]
        kind, options = kind_of(number)
        row = worst.setdefault((name, kind), [0, 0, 0, 0])
        try:
            plan = cases[name].random_plan(number, **options)
            outputs, slopes = cases[name].deviation(plan)
            row[3] += costs_differ(cases[name], plan)
        except (NiwakiError, RuntimeError, AssertionError, ValueError) as cause:
            failed += 1
            print(f"plan {number} of {name} ({kind}): {type(cause).__name__}: {' '.join(str(cause).split())[:300]}")
            print(traceback.format_exc().splitlines()[-3])
            continue
        row[:3] = row[0] + 1, max(row[1], outputs), max(row[2], slopes)
        if outputs > OUTPUTS or slopes > GRADIENTS:
            failed += 1
            print(f"plan {number} of {name} ({kind}): outputs {outputs:.1e}, gradients {slopes:.1e}")
    print("| network | plans of | number | outputs | gradients | other costs |\n|---|---|---|---|---|---|")
    for (name, kind), (count, outputs, slopes, other) in sorted(worst.items()):
        print(f"| {name} | {kind} | {count:.0f} | {outputs:.0e} | {slopes:.0e} | {other:.0f} |")
    print(f"{given.plans} plans, {failed} failed, {time.process_time() - begun:.0f} CPU s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
