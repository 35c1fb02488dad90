"""The tasks by name, each at its full and at a smoke size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from benchmarks.accuracy import datasets
from benchmarks.accuracy.augmentation import Flip, Shift
from benchmarks.accuracy.images import CrossEntropy, ImageTask
from benchmarks.accuracy.networks import CifarResNet
from benchmarks.accuracy.recipe import OneCycle, Recipe, Sgd
from benchmarks.accuracy.task import Task
from niwaki.train.networks import BUILT_IN

SMOKE = 2000  # training images of a smoke size


@dataclass(frozen=True, slots=True)
class Where:
    """What a task is built from: the folder of the data, the device, and whether at its ``smoke`` size, which shows
    that everything runs and nothing else."""

    data: Path | None
    device: torch.device
    smoke: bool = False

    def path(self, name: str) -> Path:
        """A file or folder of the data."""
        if self.data is None:
            raise SystemExit(f"This task needs {name} in the folder of the data: give it with --data.")
        if not (self.data / name).exists():
            raise SystemExit(
                f"There is no {name} in {self.data}. `python -m benchmarks.accuracy --help` tells what belongs there."
            )
        return self.data / name

    def images(self, data: datasets.Dataset) -> datasets.Dataset:
        """All of the images, or few of them."""
        return data.first(SMOKE, SMOKE // 2) if self.smoke else data


Build = Callable[[Where, int], Task]  # of a seed, which splits the digits


def steps(data: datasets.Dataset, epochs: int, batch: int) -> int:
    """Of whole batches."""
    return epochs * (len(data.train[1]) // batch)


def _digits(where: Where, seed: int) -> Task:
    """The built-in ResNet on scikit-learn's digits: a task of seconds that needs no data."""
    data = datasets.digits(seed)
    recipe = Recipe(steps(data, 4 if where.smoke else 20, 64), 64, 0.05)
    build = partial(BUILT_IN["resnet"], 10, 1, (8, 8), 1.0)
    return ImageTask("digits", recipe, data, build, where.device, (Shift(1),), about="resnet 16-32-64")


def _fashion(where: Where, seed: int) -> Task:
    """Recipe A: all of Fashion-MNIST, one residual block to a stage."""
    data = where.images(datasets.fashion(where.path("fashion_mnist/fashion_mnist.npz")))
    epochs = 4 if where.smoke else 10
    recipe = Recipe(steps(data, epochs, 128), 128, 0.1, 5e-4, Sgd(0.9, nesterov=True), OneCycle(0.2))
    return ImageTask(
        "fashion",
        recipe,
        data,
        partial(CifarResNet, 10, 1, blocks=1),
        where.device,
        (Flip(), Shift(2)),
        CrossEntropy(0.1),
        about="resnet8 16-32-64",
    )


TASKS: Mapping[str, Build] = {
    "digits": _digits,
    "fashion": _fashion,
}
