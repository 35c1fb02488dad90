"""A training of low-rank adapters on a small language model with LHSPG."""

from __future__ import annotations

from typing import Any

import torch
from lora import Llama, adapted
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.selection.budget import Budget

TOKENS = torch.randint(0, 11, (24, 9), generator=torch.Generator().manual_seed(5))

SCHEDULE = niwaki.Schedule(start=3, until=15, periods=3)


class Job:
    """A network, its search space, an optimizer with LHSPG, and steps of language modelling on fixed tokens."""

    def __init__(self, budget: Budget | None = None, model: nn.Module | None = None, **options: Any) -> None:
        torch.manual_seed(1)
        self.steps = 0
        self.model = adapted(Llama().double()) if model is None else model
        self.space = niwaki.search_space(self.model, TOKENS[:2], rehearse=False)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        options = {"loss": self.loss, **options}
        schedule = options.pop("schedule", SCHEDULE)
        self.method = niwaki.LHSPG(self.space, self.optimizer, budget or Budget(params=0.7), schedule, **options)

    def loss(self, batch: Tensor = TOKENS) -> Tensor:
        return F.cross_entropy(self.model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())

    def step(self) -> None:
        number, self.steps = self.steps, self.steps + 1
        self.optimizer.zero_grad()
        self.loss(TOKENS[number % 3 :: 3]).backward()
        self.optimizer.step()

    def until(self, step: int) -> Job:
        while self.steps < step:
            self.step()
        return self

    def weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.model.state_dict().items()}
