"""Trainings of a small network whose method cuts it while they go on."""

from __future__ import annotations

from typing import Any

import torch
from small import Small, images
from torch import Tensor

import niwaki
from niwaki.methods.method import Method

SCHEDULE = niwaki.Schedule(start=3, until=23, periods=4)

END = 28

SGD = {"lr": 0.05, "momentum": 0.9}


class Run:
    """Some steps of a float64 network with a method; ``model`` is always the same object."""

    def __init__(self, name: str = "hesso", adam: bool = False, **options: Any) -> None:
        torch.manual_seed(0)
        self.model = Small().double()
        space = niwaki.search_space(self.model, images().double())
        parameters = list(self.model.parameters())
        groups = [{"params": parameters[::2]}, {"params": parameters[1::2], "lr": 0.01}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.01) if adam else torch.optim.SGD(groups, **SGD)
        budget = niwaki.Budget(macs=0.35)
        if name == "hesso":
            self.method: Method = niwaki.HESSO(space, self.optimizer, budget, SCHEDULE, window=2, **options)
        elif name == "hesso-cric":
            self.method = niwaki.CRIC(
                space, self.optimizer, budget, SCHEDULE, loss=self.loss, window=2, cycle=3, cycles=2, **options
            )
        else:
            self.method = niwaki.HSPG(space, self.optimizer, budget=budget, schedule=SCHEDULE, **options)
        self.done = 0

    def loss(self) -> Tensor:
        loss: Tensor = self.model(images(seed=self.done).double()).square().mean()
        return loss

    def steps(self, number: int) -> list[float]:
        losses = []
        for _ in range(number):
            self.optimizer.zero_grad()
            loss = self.loss()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.item())
            self.done += 1
        return losses

    @property
    def size(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())
