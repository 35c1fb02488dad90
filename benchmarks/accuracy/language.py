"""Tasks that predict the next token of a text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.accuracy.recipe import Recipe
from benchmarks.accuracy.task import Task, reset

Tokens = NDArray[np.generic]


@dataclass(frozen=True, slots=True, eq=False)
class Texts:
    """Streams of tokens: to train on, held out of the training text for choices, and to test on."""

    train: Tokens
    held_out: Tokens
    test: Tokens

    @property
    def vocabulary(self) -> int:
        """How many tokens there are."""
        return 1 + int(max(text.max() for text in (self.train, self.held_out, self.test)))

    def __str__(self) -> str:
        return f"{len(self.train)} + {len(self.held_out)} + {len(self.test)} tokens"


class LanguageTask(Task):
    """Next tokens of windows of ``length``; the loss in nats per token over ``windows`` windows of other text."""

    measure = "loss"

    def __init__(
        self,
        name: str,
        recipe: Recipe,
        texts: Texts,
        build: Callable[[], nn.Module],
        device: torch.device,
        length: int,
        windows: int,
        renew: Callable[[nn.Module], None] = reset,
        about: str = "",
    ) -> None:
        super().__init__(name, recipe, device, f"{about}, {texts}, windows of {length}, {windows} of them for tests")
        self.build, self.length, self.windows, self._renew = build, length, windows, renew
        self._train, self._held_out, self._test = (
            torch.from_numpy(text.astype(np.int64)) for text in (texts.train, texts.held_out, texts.test)
        )

    def network(self) -> nn.Module:
        return self.build()

    def renew(self, model: nn.Module) -> None:
        self._renew(model)

    def example(self) -> Any:
        return {"input_ids": torch.zeros(1, self.length, dtype=torch.int64, device=self.device)}

    def batches(self, seed: int) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        while True:
            starts = torch.randint(len(self._train) - self.length, (self.recipe.batch,), generator=generator)
            yield self._windows(self._train, starts)

    def held_out_batches(self) -> list[Tensor]:
        starts = torch.linspace(0, len(self._held_out) - self.length, self.windows).long()
        return [self._windows(self._held_out, part) for part in starts.split(self.recipe.batch)]

    def batch_loss(self, model: nn.Module, batch: Tensor) -> Tensor:
        loss: Tensor = model(input_ids=batch, labels=batch).loss
        return loss

    @torch.no_grad()
    def evaluate(self, model: nn.Module, held_out: bool = False) -> float:
        model.eval()
        text = self._held_out if held_out else self._test
        starts = torch.linspace(0, len(text) - self.length, self.windows).long()
        return sum(
            self.batch_loss(model, self._windows(text, part)).item() * len(part) for part in starts.split(16)
        ) / len(starts)

    def _windows(self, text: Tensor, starts: Tensor) -> Tensor:
        return text[starts[:, None] + torch.arange(self.length)].to(self.device)


def characters(path: Path) -> Texts:
    """The characters of a text as numbers in the order of their codes; its last tenth is for tests, the twentieth
    before is held out."""
    text = np.array([ord(letter) for letter in path.read_text(encoding="utf-8")])
    numbers = np.unique(text, return_inverse=True)[1]
    held_out, test = len(numbers) * 17 // 20, len(numbers) * 9 // 10
    return Texts(numbers[:held_out], numbers[held_out:test], numbers[test:])


def tokens(path: Path) -> Texts:
    """The arrays ``train``, whose last twentieth is held out, and ``val`` of an archive."""
    with np.load(path) as archive:
        train, test = archive["train"], archive["val"]
    border = len(train) * 19 // 20
    return Texts(train[:border], train[border:], test)
