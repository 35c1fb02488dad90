"""Trainings with each method, on one budget and schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from training import Training, sgd

from niwaki.methods import CRIC, DHSPG, HESSO, HSPG, AdaHSPG, GReg2, Schedule
from niwaki.methods.method import Method
from niwaki.selection.budget import Budget

BUDGET = Budget(macs=0.5)

SCHEDULE = Schedule(start=3, until=24, periods=3)

KINDS: dict[str, tuple[Callable[..., Method], dict[str, Any]]] = {
    "hesso": (HESSO, {}),
    "angle-safe": (HESSO, {"schedule": Schedule(start=3, until=24, periods=3, fade="angle-safe")}),
    "cric": (CRIC, {"layers": 0}),
    "dhspg": (DHSPG, {"window": 3}),
    "hspg": (HSPG, {"penalty": 0.05}),
    "adahspg": (AdaHSPG, {"penalty": 0.05}),
    "greg2": (GReg2, {"growth": 0.2}),
}


def training(kind: str, build: Callable[..., Optimizer] = sgd, net: str = "mlp", **options: Any) -> Training:
    make, more = KINDS[kind]
    return Training(net, build, BUDGET, kind=make, **{"schedule": SCHEDULE} | more | options)


def flat(run: Training) -> Tensor:
    return torch.cat([value.flatten() for value in run.parameters().values()])
