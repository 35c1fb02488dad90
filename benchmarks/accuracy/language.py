"""Tasks that predict the next token of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.accuracy.task import Recipe, Task

Tokens = NDArray[np.generic]


class LanguageTask(Task):
    """Next tokens of windows of ``length``; the loss in nats per token over ``windows`` windows of other text."""

    measure = "loss"

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        texts: tuple[Tokens, Tokens],
        build: Callable[[float], nn.Module],
        device: torch.device,
        length: int,
        windows: int,
    ) -> None:
        super().__init__(name, recipe, device)
        self.build, self.length, self.windows = build, length, windows
        self._train, self._test = (torch.from_numpy(text.astype(np.int64)) for text in texts)

    def network(self, width: float) -> nn.Module:
        return self.build(width)

    def example(self) -> Any:
        return {"input_ids": torch.zeros(1, self.length, dtype=torch.int64, device=self.device)}

    def batches(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(self._train) - self.length, (self.recipe.batch,), generator=generator)
            yield self._windows(self._train, starts)

    def batch_loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=batch, labels=batch).loss
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module) -> float:
        model.eval()
        starts = torch.linspace(0, len(self._test) - self.length, self.windows).long()
        return sum(
            self.batch_loss(model, self._windows(self._test, part)).item() * len(part) for part in starts.split(16)
        ) / len(starts)

    def _windows(self, text: Tensor, starts: Tensor) -> Tensor:
        return text[starts[:, None] + torch.arange(self.length)].to(self.device)


def characters(path: Path) -> tuple[Tokens, Tokens]:
    """The characters of a text as numbers in the order of their codes; its last tenth is for tests."""
    text = np.array([ord(letter) for letter in path.read_text(encoding="utf-8")])
    numbers = np.unique(text, return_inverse=True)[1]
    border = len(numbers) * 9 // 10
    return numbers[:border], numbers[border:]


def tokens(path: Path) -> tuple[Tokens, Tokens]:
    """The arrays ``train`` and ``val`` of an archive."""
    with np.load(path) as archive:
        return archive["train"], archive["val"]
