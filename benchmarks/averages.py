"""Which weights of a run can be cut: averages (EMA) of the whole run and begun anew, and best checkpoints.

python benchmarks/averages.py [--seeds 3] [--after 22 66 220]

A network of two convolutions learns the digits; HESSO brings it to 30 % of its MACs by step 264, and training goes on
for ``--after`` steps. Figures are the test accuracy of the cut network, in %, the means of the seeds.
"""

from __future__ import annotations

import argparse
import copy
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import niwaki
from niwaki.train.data import load_images

SCHEDULE = niwaki.Schedule(start=44, until=264)
ARMS = ("the last step", "average", "average, zero_ at until", "average begun at until", "best", "best where done")


def network() -> nn.Module:
    """Two convolutions with norms, 32 and 64 channels wide."""
    first = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2)
    second = nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(64, 10))


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """In %."""
    model.eval()
    right = (model(x).argmax(1) == y).float().mean()
    model.train()
    return 100 * float(right)


def run(seed: int, after: int) -> dict[str, float]:
    """The accuracy of each arm after the cut; all are of one training."""
    torch.manual_seed(seed)
    images = load_images("digits", seed)
    x, test_x = images.train_x.float() / 255, images.test_x.float() / 255
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    method = niwaki.HESSO(niwaki.search_space(model, x[:2]), optimizer, niwaki.Budget(macs=0.3), SCHEDULE)
    averages = {
        arm: AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995), use_buffers=True) for arm in ARMS[1:4]
    }
    best: dict[str, tuple[float, nn.Module]] = {}
    while method.step < SCHEDULE.until + after:
        for batch in torch.randperm(len(x)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), images.train_y[batch]).backward()
            optimizer.step()
            for average in averages.values():
                average.update_parameters(model)
            if method.step == SCHEDULE.until:
                niwaki.zero_(averages["average, zero_ at until"], method.plan())
                averages["average begun at until"].n_averaged.zero_()
        reached = accuracy(model, test_x, images.test_y)
        for arm in ("best", "best where done") if method.done else ("best",):
            if reached > best.get(arm, (0.0, model))[0]:
                best[arm] = reached, copy.deepcopy(model)
    chosen = {"the last step": model, **averages, **{arm: found for arm, (_, found) in best.items()}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what they say is what is measured here
        plan = method.plan()
        cut = {arm: niwaki.cut(getattr(weights, "module", weights), plan) for arm, weights in chosen.items()}
    return {arm: accuracy(small, test_x, images.test_y) for arm, small in cut.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--after", type=int, nargs="+", default=[22, 66, 220])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("weights", *(f"{after} steps after" for after in arguments.after))
    found = [[run(seed, after) for seed in range(arguments.seeds)] for after in arguments.after]
    for arm in ARMS:
        table.add_row(arm, *(f"{sum(one[arm] for one in runs) / len(runs):.1f}" for runs in found))
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
