"""Tasks that classify images."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.task import Recipe, Task
from niwaki.train.batches import normalised, shifted
from niwaki.train.data import Images, load_images

Build = Callable[[int, int, tuple[int, int], float], nn.Module]  # classes, channels, size, width


@dataclass(frozen=True, slots=True)
class Augmentation:
    """Images are moved by up to ``shift`` pixels in each direction, and mirrored half of the time where ``flip``."""

    shift: int = 1
    flip: bool = False


class ImageTask(Task):
    """Scores [B, classes] of images [B, C, H, W]; cross-entropy; the share of test images that is right.

    All images live on the device of the task.
    """

    measure = "accuracy"

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        images: Images,
        build: Build,
        device: torch.device,
        augmentation: Augmentation = Augmentation(),
        fast: bool = False,
    ) -> None:
        super().__init__(name, recipe, device, fast)
        self.images, self.build, self.augmentation = images, build, augmentation
        # On a CPU torch 2.13 writes past its buffers in the backward pass of some channels-last convolutions, such as
        # networks come to have here when they are cut (see `shifted`).
        self._layout = torch.channels_last if device.type == "cuda" else torch.contiguous_format
        self._mean, self._std = images.statistics()
        self._x, self._y = images.train_x.to(device), images.train_y.to(device)
        self._test_x, self._test_y = images.test_x.to(device), images.test_y.to(device)

    def network(self, width: float) -> nn.Module:
        return self.build(self.images.classes, self.images.channels, self.images.size, width)

    def prepared(self, model: nn.Module) -> nn.Module:
        return model.to(self.device, memory_format=self._layout)  # type: ignore[call-overload, no-any-return]

    def example(self) -> Any:
        return self._ready(self._test_x[:1])

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        size, moved, epoch = self.recipe.batch, self.augmentation.shift, 0
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(len(self._y), generator=generator)
            offsets = torch.randint(0, 2 * moved + 1, (len(order), 2), generator=generator).to(self.device)
            mirrored = torch.rand(len(order), generator=generator).to(self.device) < 0.5
            order = order.to(self.device)
            for start in range(0, len(order) - size + 1, size):
                rows = order[start : start + size]
                x = shifted(self._x[rows], offsets[rows], moved)
                if self.augmentation.flip:
                    x = torch.where(mirrored[rows][:, None, None, None], x.flip(3), x)
                yield self._ready(x), self._y[rows]
            epoch += 1

    def batch_loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(model(x), y)

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        model.eval()
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(self._test_y), 500):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.fast):
                scores = model(self._ready(self._test_x[start : start + 500]))
            right += (scores.argmax(1) == self._test_y[start : start + 500]).sum()
        return right.item() / len(self._test_y)

    def _ready(self, x: Tensor) -> Tensor:
        return normalised(x, self._mean, self._std, self.device).contiguous(memory_format=self._layout)


def limited(images: Images, train: int | None, test: int | None) -> Images:
    """The first ``train`` training and ``test`` test images; None takes all."""
    return replace(
        images,
        train_x=images.train_x[:train],
        train_y=images.train_y[:train],
        test_x=images.test_x[:test],
        test_y=images.test_y[:test],
    )


def cifar10(folder: Path) -> Images:
    """Batches 1 to 4 for training and 5 for test, from ``cifar10_train_1.npz`` ... ``cifar10_train_5.npz``.

    The official test images are not among them, so results compare with one another and not with published ones.
    """
    parts = [load_images(str(folder / f"cifar10_train_{number}.npz"), 0) for number in range(1, 6)]
    x = [torch.cat([part.train_x, part.test_x]) for part in parts]
    y = [torch.cat([part.train_y, part.test_y]) for part in parts]
    return Images("cifar10", torch.cat(x[:4]), torch.cat(y[:4]), x[4], y[4], 10)
