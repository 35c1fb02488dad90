"""What each mask generator reaches on a frozen network: how near the budget, how good, how soon, how fast.

python -m benchmarks.masks [--budgets 0.2 ... 0.9] [--steps 500] [--generators gru ...]

The built-in ResNet (224 units, which cost 0.3 to 3.2 % of its MACs each) learns scikit-learn's digits for 10 epochs and
does not change any more. Then each generator takes ``--steps`` steps on batches of training images under each budget of
the MACs. *from*: above, with all units, or below, after 150 steps under a budget of 12 %. *off*: the cost of its mask
without noise less the budget, in % of the dense network. *settled*: the step from which on it is within 0.5 %. *loss*:
of the masked network on all test images, without any training (that of the dense network stands above).
*evenly*: of a network whose groups keep equal shares, by magnitude. *seconds*: of all steps, on the threads that
torch uses.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

import niwaki
from niwaki.masks import MaskGenerator, generators
from niwaki.masks.training import LATE, MaskTraining, even_share, unit_norms
from niwaki.networks.small import ResNet
from niwaki.selection.budget import Budget
from niwaki.train.data import load_images

BATCH, NEAR = 64, 0.005
LITTLE, WARM_UP = 0.12, 150  # of the MACs, and the steps to come there


@dataclass(frozen=True, slots=True, eq=False)
class Frozen:
    """A trained network in eval mode, its space, and its images."""

    model: nn.Module
    space: niwaki.SearchSpace
    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def loss_of(self, rows: Tensor) -> Callable[[nn.Module], Tensor]:
        """The loss of some training images, as a function of the model."""
        x, y = (whole[rows] for whole in self.train)
        return lambda model: nn.functional.cross_entropy(model(x), y)

    @torch.no_grad()
    def masked_loss(self, training: MaskTraining, mask: Tensor) -> float:
        """That of all test images under a mask [num_units]."""
        x, y = self.test
        return float(training.gates.value(mask, lambda model: nn.functional.cross_entropy(model(x), y)))


def trained() -> Frozen:
    """After 10 epochs."""
    torch.manual_seed(0)
    images = load_images("digits", 0)
    train = images.train_x.float() / 255, images.train_y
    model = ResNet(10, 1, (8, 8), (16, 32, 64), blocks=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(10 * len(train[1]) // BATCH):
        rows = torch.randint(len(train[1]), (BATCH,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(train[0][rows]), train[1][rows]).backward()
        optimizer.step()
    space = niwaki.search_space(model, train[0][:1])
    return Frozen(model.eval(), space, train, (images.test_x.float() / 255, images.test_y))


def evenly(frozen: Frozen, share: float) -> Tensor:
    """A mask that keeps the largest units of each group, the same share of each."""
    norms, keep = unit_norms(frozen.space).numpy(), np.zeros(frozen.space.num_units, dtype=np.float32)
    for group in frozen.space.width_groups:
        order = group.first + np.argsort(-norms[group.numbers])
        keep[order[: max(1, int(share * group.units))]] = 1
    return torch.from_numpy(keep)


def begun(frozen: Frozen, name: str, below: bool) -> MaskGenerator:
    """A generator whose mask keeps everything, or little."""
    space = frozen.space
    generator = generators()[name](space, 0)
    if below:
        training = MaskTraining(space, generator, Budget(macs=LITTLE).absolute(space), WARM_UP)
        for step in range(WARM_UP):
            training.step(frozen.loss_of(torch.arange(BATCH)), LATE * step / WARM_UP)
    return generator


def run(frozen: Frozen, name: str, below: bool, share: float, steps: int) -> list[str]:
    """One row of the table."""
    space, limits = frozen.space, Budget(macs=share).absolute(frozen.space)
    generator = begun(frozen, name, below)
    training = MaskTraining(space, generator, limits, steps)
    draw, settled, spent, off = torch.Generator().manual_seed(0), 0, 0.0, 1.0
    for step in range(steps):
        rows = torch.randint(len(frozen.train[1]), (BATCH,), generator=draw)
        before = time.perf_counter()
        training.step(frozen.loss_of(rows), step / steps)
        spent += time.perf_counter() - before
        mask = generator.gates().hard.detach()
        off = space.cost_of(mask.numpy() > 0.5).macs / space.cost().macs - share
        settled = settled if abs(off) <= NEAR else step + 1
    even = frozen.masked_loss(training, evenly(frozen, even_share(space, limits)))
    return [
        *(name, "below" if below else "above", f"{share:.1f}"),
        *(f"{100 * off:+.2f}", str(settled) if settled < steps else "-"),
        *(f"{frozen.masked_loss(training, mask):.3f}", f"{even:.3f}", f"{spent:.1f}"),
    ]


def main() -> None:
    """Print one table, a row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[round(0.1 * n, 1) for n in range(2, 10)])
    parser.add_argument("--generators", nargs="+", choices=sorted(generators()), default=sorted(generators()))
    parser.add_argument("--steps", type=int, default=500)
    options = parser.parse_args()
    frozen = trained()
    x, y = frozen.test
    with torch.no_grad():
        dense = float(nn.functional.cross_entropy(frozen.model(x), y))
    print(f"dense loss {dense:.3f}\n")
    columns = "generator", "from", "budget", "off %", "settled", "loss", "evenly", "seconds"
    for row in (columns, ["---"] * len(columns)):
        print("|", " | ".join(row), "|", flush=True)
    for name in options.generators:
        for below in (False, True):
            for share in options.budgets:
                print("|", " | ".join(run(frozen, name, below, share, options.steps)), "|", flush=True)


if __name__ == "__main__":
    main()
