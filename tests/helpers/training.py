"""A training of a small network on fixed data, with or without a method, and its optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from handmade import MLP, ConvNet, Overlap, conv_space, mlp_space, overlap_space
from torch import Tensor, nn

from niwaki.core.space import SearchSpace
from niwaki.methods import HESSO, Schedule
from niwaki.methods.method import Method
from niwaki.selection.budget import Budget

SCHEDULE = Schedule(start=3, until=16, periods=3)

Build = Callable[..., torch.optim.Optimizer]


class Training:
    """A net on fixed random data, with or without a method."""

    def __init__(
        self,
        net: str,
        build: Build,
        budget: Budget | None = None,
        schedule: Schedule = SCHEDULE,
        dtype: torch.dtype = torch.float32,
        kind: Callable[..., Method] = HESSO,
        **options: object,
    ) -> None:
        torch.manual_seed(7)
        make, space_of, shape = {
            "mlp": (MLP, mlp_space, (6,)),
            "wide": (lambda: MLP(6, 80, 60), mlp_space, (6,)),
            "conv": (ConvNet, conv_space, (1, 6, 6)),
            "overlap": (Overlap, overlap_space, (5,)),
        }[net]
        self.model: nn.Module = make().to(dtype)
        self.space: SearchSpace = space_of(self.model)
        self.optimizer = build(self.model.parameters())
        self.x, self.y = torch.randn(40, 8, *shape).to(dtype), torch.randint(0, 2, (40, 8))
        self.done = 0
        self.method: Any = None
        if budget is not None:
            window = {"window": 3} if kind is HESSO else {}
            self.method = kind(self.space, self.optimizer, budget, schedule, **window | options)

    def loss(self) -> Tensor:
        return nn.functional.cross_entropy(self.model(self.x[self.done % 40]), self.y[self.done % 40])

    def step(self, count: int = 1) -> None:
        for _ in range(count):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
            self.done += 1

    def parameters(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def driven(self, units: np.ndarray) -> dict[str, Tensor]:
        """Which entries lie in a driven slice of the marked ``units``, by parameter."""
        masks = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in self.model.named_parameters()}
        for group in self.space.groups:
            for unit in np.flatnonzero(units[group.numbers]):
                for piece in group.slices:
                    if piece.parameter and piece.role.zeroed_by_method:
                        masks[piece.tensor].index_fill_(piece.dim, torch.from_numpy(piece.index[unit]), True)
        return masks

    def marked(self) -> np.ndarray:
        assert self.method is not None
        return ~self.space.keep_of(self.method.plan())


def sgd(parameters: object, **options: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, **{"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2} | options)  # type: ignore[arg-type]


def adamw(parameters: object, **options: object) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, **{"lr": 0.02} | options)  # type: ignore[arg-type]


def two_rates(parameters: Any, build: Build = sgd) -> torch.optim.Optimizer:
    """The last two thirds of the parameters learn half as fast, and decay differently."""
    listed = list(parameters)
    half = len(listed) // 3
    rest = {"params": listed[half:], "lr": 0.02, "weight_decay": 0.1}
    return build([{"params": listed[:half]}, rest])
