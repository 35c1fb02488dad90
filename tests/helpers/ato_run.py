"""A small network in training with Auto-Train-Once, and its held-out batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from training import adamw

import niwaki
from niwaki.methods import Schedule
from niwaki.selection.budget import Budget

SCHEDULE = Schedule(start=3, until=43)  # project 11, freeze 27, fade 39
BUDGET = Budget(macs=0.5)


def loss_fn(model: nn.Module, batch: Any) -> Tensor:
    x, y = batch
    return nn.functional.cross_entropy(model(x), y)


def labelled(number: int, size: int = 16) -> tuple[Tensor, Tensor]:
    """A batch that follows from its number."""
    draw = torch.Generator().manual_seed(number)
    x = torch.randn(size, 8, generator=draw)
    return x, (x[:, :4].sum(1) > 0).long()


class Run:
    """A perceptron on batches that follow from the number of the step; without a method if ``budget`` is None."""

    def __init__(
        self,
        build: Callable[..., torch.optim.Optimizer] = adamw,
        budget: Budget | None = BUDGET,
        schedule: Schedule = SCHEDULE,
        widths: tuple[int, int] = (24, 16),
        dropout: float = 0.1,
        dtype: torch.dtype = torch.float32,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        first, second = widths
        self.dtype = dtype
        self.model = nn.Sequential(
            *(nn.Linear(8, first), nn.BatchNorm1d(first), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 2)),
        ).to(dtype)
        self.space = niwaki.search_space(self.model, torch.randn(2, 8, dtype=dtype))
        self.optimizer = build(self.model.parameters())
        self.held_out = [self.batch(1000 + number) for number in range(3)]
        self.method: Any = None
        if budget is not None:
            given = {"loss_fn": loss_fn, "batches": self.held_out, "generator": "independent"} | options
            self.method = niwaki.ATO(self.space, self.optimizer, budget, schedule, **given)
        self.done = 0
        torch.manual_seed(1)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        x, y = labelled(number)
        return x.to(self.dtype), y

    def step(self, number: int = 1) -> Run:
        for _ in range(number):
            self.model.train()
            self.optimizer.zero_grad()
            loss_fn(self.model, self.batch(self.done)).backward()
            self.optimizer.step()
            self.done += 1
        return self

    def parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}
