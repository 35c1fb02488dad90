"""What `niwaki.DDPMasks` reaches on the frozen network of `python -m benchmarks.masks`, for its table beside that one.

python -m benchmarks.masks.deterministic [--budgets 0.2 ... 0.9] [--steps 500]

*from*: above, with all units, or below, with latents of 0.02. The mask is decided after 3/4 of the steps. *before*: the
cost of the mask of its latents just before less the budget, in % of the dense network; *off*: that of the mask from
then on. *loss*: of the masked network on all test images, with the scales that were learnt; *unfolded*: without them.
"""

from __future__ import annotations

import argparse
import time

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.masks.__main__ import BATCH, Frozen, trained
from niwaki.masks.deterministic import FREEZE, DeterministicTraining
from niwaki.masks.latents import Latents
from niwaki.selection import UNITS, SelectionRequest
from niwaki.selection.budget import Budget

LOW = 0.02


def run(frozen: Frozen, below: bool, share: float, steps: int) -> list[str]:
    """One row of the table."""
    space, limits, latents = frozen.space, Budget(macs=share).absolute(frozen.space), Latents(frozen.space)
    training = DeterministicTraining(space, latents, limits, steps)
    if below:
        with torch.no_grad():
            latents.values.fill_(LOW)
    draw, dense, before = torch.Generator().manual_seed(0), space.cost().macs, 0.0
    began = time.perf_counter()
    for step in range(steps):
        if step == int(FREEZE * steps):
            before = space.cost_of(latents.gates().hard.detach().numpy() > 0.5).macs / dense - share
            training.freeze(UNITS.select(space, training.worth(), SelectionRequest(limits, compare="space")))
        rows = torch.randint(len(frozen.train[1]), (BATCH,), generator=draw)
        training.step(frozen.loss_of(rows), step / steps)
    spent, scales = time.perf_counter() - began, training.gate_values()
    mask, losses = (scales > 0).float(), []
    x, y = frozen.test
    with torch.no_grad():
        for gates in (scales, mask):
            losses.append(
                float(training.gates.value(gates, lambda model: torch.nn.functional.cross_entropy(model(x), y)))
            )
    off = space.cost_of(mask.numpy() > 0).macs / dense - share
    return [
        *("ddp", "below" if below else "above", f"{share:.1f}", f"{100 * before:+.2f}", f"{100 * off:+.2f}"),
        *(*(f"{loss:.3f}" for loss in losses), f"{spent:.1f}"),
    ]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[round(0.1 * n, 1) for n in range(2, 10)])
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    frozen = trained()
    table = Table("masks", "from", "budget", "before %", "off %", "loss", "unfolded", "seconds")
    for below in (False, True):
        for share in options.budgets:
            table.add_row(*run(frozen, below, share, options.steps))
    Console().print(table)


if __name__ == "__main__":
    main()
