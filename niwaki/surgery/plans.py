"""Which plan a module was cut by, for as long as the module lives."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch

from niwaki.core.plan import Plan

_PLANS: WeakKeyDictionary[torch.nn.Module, Plan] = WeakKeyDictionary()


def remember(module: torch.nn.Module, plan: Plan) -> None:
    """Note that ``module`` was cut by ``plan``."""
    _PLANS[module] = plan


def plan_of(module: torch.nn.Module) -> Plan | None:
    """The plan that ``module`` was cut by, if niwaki cut it in this process."""
    return _PLANS.get(module)
