"""The tasks on images."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path

from safetensors.torch import load_model
from torch import Tensor, nn

from benchmarks.accuracy import datasets
from benchmarks.accuracy.airbench import STEP, Airbench, AirbenchSgd, whitening
from benchmarks.accuracy.augmentation import AlternatingFlip, BatchShift, Flip, Shift
from benchmarks.accuracy.images import CrossEntropy, ImageTask
from benchmarks.accuracy.networks import CifarResNet, VisionTransformer
from benchmarks.accuracy.recipe import Adam, Drops, OneCycle, Recipe, Sgd
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.where import Where
from niwaki.networks.built_in import BUILT_IN
from niwaki.networks.cells import CellNetwork

SMOKE_EPOCHS = 4
SMOKE_STEPS = 40
Build = Callable[[], nn.Module]
RESNET8 = partial(CifarResNet, 10, 1, blocks=1)
RESNET20 = Path(__file__).parent / "weights/cifar10_resnet20.safetensors"  # the dense network of seed 0


def steps(data: datasets.Dataset, epochs: int, batch: int) -> int:
    """Of whole batches."""
    return epochs * (len(data.train[1]) // batch)


def digits(where: Where, seed: int) -> Task:
    """The built-in ResNet on scikit-learn's digits: a task of seconds that needs no data."""
    data = datasets.digits(seed)
    recipe = Recipe(steps(data, SMOKE_EPOCHS if where.smoke else 20, 64), 64, 0.05)
    build = partial(BUILT_IN["resnet"], 10, 1, (8, 8), 1.0)
    return ImageTask("digits", recipe, data, build, where.device, (Shift(1),), about="resnet 16-32-64")


def digits_vit(where: Where, seed: int) -> Task:
    """A ViT of three layers on the digits."""
    data = datasets.digits(seed)
    recipe = Recipe(steps(data, SMOKE_EPOCHS if where.smoke else 120, 64), 64, 2e-3, 0.01, Adam(), OneCycle(0.2))
    build = partial(VisionTransformer, 10, 1, 8)
    return ImageTask("digits-vit", recipe, data, build, where.device, (Shift(1),), about="ViT of 3 layers, width 48")


def fashion(
    where: Where,
    seed: int,
    name: str = "fashion",
    build: Build = RESNET8,
    about: str = "resnet8 16-32-64",
) -> Task:
    """Recipe A: all of Fashion-MNIST, by default with one residual block to a stage."""
    data = where.images(datasets.fashion(where.path("fashion_mnist/fashion_mnist.npz")))
    epochs, batch = (SMOKE_EPOCHS, 64) if where.smoke else (10, 128)
    recipe = Recipe(steps(data, epochs, batch), batch, 0.1, 5e-4, Sgd(0.9, nesterov=True), OneCycle(0.2))
    return ImageTask(
        name,
        recipe,
        data,
        build,
        where.device,
        (Flip(), Shift(2)),
        CrossEntropy(0.1),
        about=about,
        fast=True,
        channels_last=True,
    )


def airbench(where: Where, seed: int, epochs: int = 8) -> Task:
    """Recipe B: CIFAR-10, fast and converged."""
    data = where.images(datasets.cifar10(where.path("cifar10")))
    batch = 100 if where.smoke else 500
    optimizer = AirbenchSgd(whitening=3 / epochs)
    recipe = Recipe(steps(data, epochs, batch), batch, 10 / STEP, 0.015 * batch / STEP, optimizer, OneCycle(0.2, 0.2))
    return ImageTask(
        f"cifar10-airbench-{epochs}",
        recipe,
        data,
        partial(Airbench, _whitening(data)),
        where.device,
        (AlternatingFlip(), BatchShift(2)),
        CrossEntropy(0.2, summed=True),
        channels_last=True,
        renew=Airbench.initialise,  # type: ignore[arg-type]
        ignored=("whiten",),
        about="airbench 24-32-128-128",
        fast=True,
    )


def resnet20(where: Where, seed: int) -> Task:
    """Recipe B': CIFAR-10 with a residual stream."""
    data = where.images(datasets.cifar10(where.path("cifar10")))
    epochs, batch = (SMOKE_EPOCHS, 64) if where.smoke else (16, 128)
    recipe = Recipe(steps(data, epochs, batch), batch, 0.1, 5e-4, Sgd(0.9), OneCycle(0.2))
    build = partial(CifarResNet, 10, 3, blocks=3)
    return ImageTask(
        "cifar10-resnet20",
        recipe,
        data,
        build,
        where.device,
        (Flip(), Shift(4)),
        about="resnet20 16-32-64",
        fast=True,
        channels_last=True,
    )


def finetuned(where: Where, seed: int, epochs: int | None = None) -> Task:
    """Recipe C: the dense network of recipe B' trained on, 200 steps or so many epochs."""
    data = where.images(datasets.cifar10(where.path("cifar10")))
    length = SMOKE_STEPS if where.smoke else 200 if epochs is None else steps(data, epochs, 128)
    return ImageTask(
        f"cifar10-finetune-{'200-steps' if epochs is None else f'{epochs}-epochs'}",
        Recipe(length, 128, 0.02, 5e-4, Sgd(0.9), OneCycle(0.2)),
        data,
        _pretrained,
        where.device,
        (Flip(), Shift(4)),
        about=f"resnet20 16-32-64 of {_digest(RESNET20)}",
        fast=epochs is not None,
        channels_last=True,
    )


def gpu(where: Where, seed: int, layers: int, blocks: int, widths: tuple[int, ...]) -> Task:
    """Recipe E: CIFAR-10 in 300 epochs, for a GPU."""
    data = where.images(datasets.cifar10(where.path("cifar10")))
    length, batch = (SMOKE_STEPS, 8) if where.smoke else (steps(data, 300, 128), 128)
    recipe = Recipe(length, batch, 0.1, 5e-4, Sgd(0.9), Drops((0.3, 0.6, 0.8, 0.9), 0.2))
    return ImageTask(
        f"cifar10-resnet{layers}",
        recipe,
        data,
        partial(CifarResNet, 10, 3, blocks, widths),
        where.device,
        (Flip(), Shift(4)),
        about=f"resnet{layers} {'-'.join(map(str, widths))}",
        fast=True,
    )


def darts(where: Where, seed: int) -> Task:
    """Eight cells of four nodes with all candidates on all edges, trained as DARTS trains while it searches."""
    data = where.images(datasets.cifar10(where.path("cifar10")))
    length, batch = (50, 8) if where.smoke else (steps(data, 50, 64), 64)
    recipe = Recipe(length, batch, 0.025, 3e-4, Sgd(0.9))
    return ImageTask(
        "cifar10-darts",
        recipe,
        data,
        partial(CellNetwork, 10, 3, 16, cells=8, nodes=4, halving=(2, 5)),
        where.device,
        (Flip(), Shift(4)),
        about="8 cells of 4 nodes, width 16",
        channels_last=True,
    )


@lru_cache(maxsize=1)
def _whitening(data: datasets.Dataset) -> Tensor:
    """Of 5,000 training images."""
    images = data.train[0][:5000].float()
    return whitening((images - data.mean[:, None, None]) / data.std[:, None, None])


def _pretrained() -> nn.Module:
    model = CifarResNet(10, 3, blocks=3)
    load_model(model, RESNET20)
    return model


def _digest(path: Path) -> str:
    if not path.exists():
        raise SystemExit(f"There is no {path}: train cifar10-resnet20 with --save, and put its file there.")
    return hashlib.sha256(path.read_bytes()).hexdigest()[:10]
