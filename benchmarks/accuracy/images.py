"""Tasks that classify images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.accuracy.augmentation import Augmentation, Epoch
from benchmarks.accuracy.datasets import Dataset, Part
from benchmarks.accuracy.recipe import Recipe
from benchmarks.accuracy.task import Task, reset

EVALUATED = 500  # images at once


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """The mean over a batch, or the sum where ``summed``; labels are smoothed by ``smoothing``."""

    smoothing: float = 0.0
    summed: bool = False

    def __call__(self, scores: Tensor, labels: Tensor) -> Tensor:
        reduction = "sum" if self.summed else "mean"
        return nn.functional.cross_entropy(scores, labels, label_smoothing=self.smoothing, reduction=reduction)


class ImageTask(Task):
    """Scores [B, classes] of images [B, C, H, W]; the share of images that is right.

    All images live on the device of the task, and every epoch is augmented at once. ``build()`` makes a network,
    ``renew(model)`` draws the weights of one that has been cut. ``channels_last``: the memory layout on a CPU (on a GPU
    it is always that one); images of one channel, and the layers that read them, stay contiguous there, since torch
    2.13's convolutions write past their buffers otherwise.
    """

    measure = "accuracy"

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        data: Dataset,
        build: Callable[[], nn.Module],
        device: torch.device,
        augmentations: Sequence[Augmentation] = (),
        loss: Callable[[Tensor, Tensor], Tensor] = CrossEntropy(),
        renew: Callable[[nn.Module], None] = reset,
        ignored: Sequence[str] = (),
        about: str = "",
        fast: bool = False,
        channels_last: bool = False,
    ) -> None:
        about = f"{about}, {data}, {loss}, {' '.join(map(str, augmentations)) or 'no augmentation'}"
        about += ", bfloat16" if fast else ""
        super().__init__(name, recipe, device, about, ignored, fast)
        self.build, self.augmentations, self._loss, self._renew = build, tuple(augmentations), loss, renew
        self._layout = torch.channels_last if channels_last or device.type == "cuda" else torch.contiguous_format
        grey = data.train[0].shape[1] == 1 and device.type == "cpu"
        self._images = torch.contiguous_format if grey else self._layout
        self._train, self._held_out, self._test = (_on(p, device) for p in (data.train, data.held_out, data.test))
        self._mean, self._std = (values.to(device)[:, None, None] for values in (data.mean, data.std))

    def network(self) -> nn.Module:
        return self.build()

    def renew(self, model: nn.Module) -> None:
        self._renew(model)

    def prepared(self, model: nn.Module) -> nn.Module:
        model.to(self.device, memory_format=self._layout)  # type: ignore[call-overload]
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d) and layer.in_channels == 1 and self._images != self._layout:
                layer.weight.data = layer.weight.data.clone(memory_format=self._images)
        return model

    def example(self) -> Any:
        return self._ready(self._train[0][:1])

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        x, y = self._train
        size, number = self.recipe.batch, 0
        while True:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + number)
            rows = torch.randperm(len(y), generator=generator)[: len(y) // size * size].to(self.device)
            epoch = Epoch(seed, number, rows, size, generator)
            images, labels = x[rows], y[rows]
            for augmentation in self.augmentations:
                images = augmentation(images, epoch)
            for start in range(0, len(rows), size):
                yield self._ready(images[start : start + size]), labels[start : start + size]
            number += 1

    def held_out_batches(self) -> list[tuple[Tensor, Tensor]]:
        x, y = self._held_out
        size = self.recipe.batch
        return [(self._ready(x[start : start + size]), y[start : start + size]) for start in range(0, len(y), size)]

    def batch_loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return self._loss(model(x), y)

    @torch.no_grad()
    def evaluate(self, model: nn.Module, held_out: bool = False) -> float:
        model.eval()
        x, y = self._held_out if held_out else self._test
        right = torch.zeros((), dtype=torch.int64, device=self.device)
        for start in range(0, len(y), EVALUATED):
            scores = model(self._ready(x[start : start + EVALUATED]))
            right += (scores.argmax(1) == y[start : start + EVALUATED]).sum()
        return right.item() / len(y)

    def _ready(self, x: Tensor) -> Tensor:
        # A copy, since `contiguous` leaves images of one channel with the strides of channels-last ones.
        x = x.to(torch.float32).clone(memory_format=self._images)
        return x.sub_(self._mean).div_(self._std)


def _on(part: Part, device: torch.device) -> Part:
    return part[0].to(device), part[1].to(device)
