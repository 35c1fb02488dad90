"""Which plan a network was cut by, for as long as it lives."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch.export import ExportedProgram

from niwaki.core.plan import Plan

_PLANS: WeakKeyDictionary[torch.nn.Module | ExportedProgram, Plan] = WeakKeyDictionary()


def remember(network: torch.nn.Module | ExportedProgram, plan: Plan) -> None:
    """Note that ``network`` was cut by ``plan``."""
    _PLANS[network] = plan


def plan_of(network: torch.nn.Module | ExportedProgram) -> Plan | None:
    """The plan that ``network`` was cut by, if niwaki cut it in this process."""
    return _PLANS.get(network)
