"""The angle-safe fade of GETA: a unit that the training wants to grow fades no faster than the loss still descends."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from niwaki.errors import MethodError
from niwaki.methods.fades import FADING, fade
from niwaki.methods.parts import Update
from niwaki.methods.rule_update import RuleUpdate
from niwaki.methods.trained_units import TrainedUnits
from niwaki.per_unit.protocol import IterateSums, UnitIterates, UnitUpdate, UpdateRule

SHARE = 1e-3  # 1 - eta, of the largest rate that descends


@dataclass(frozen=True, slots=True)
class AngleSafe(UpdateRule):
    """With y the weights of a unit after the optimizer's step, d its direction and lr the learning rate, y becomes
    (1 - rate) y, where

        rate = 1 - factor                                            where <y, d> >= 0, or nothing moves
        rate = (1 - eta) <lr d, d> / -<y, d>, but no more than that  where <y, d> < 0

    which for one learning rate is -(1 - eta) lr ||d|| / (cos(y, d) ||y||). The whole step -lr d - rate y descends along
    d as long as rate < <lr d, d> / -<y, d>. It never fades faster than linearly, which for weights near zero the
    formula by itself would.
    """

    factor: float

    @property
    def reads(self) -> frozenset[str]:
        """What the step left, along d."""
        return frozenset({"ahead", "direction", "moved"})

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The formula, for one unit."""
        ahead, linear = unit.y @ unit.d, unit.y.new_tensor(1 - self.factor)
        if ahead >= 0:
            return UnitUpdate(keep=1 - linear)
        return UnitUpdate(keep=1 - torch.minimum(linear, SHARE * ((unit.lr * unit.d) @ unit.d) / -ahead))

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all units."""
        grows = sums.ahead < 0
        safe = SHARE * sums.moved / torch.where(grows, -sums.ahead, 1)
        return UnitUpdate(keep=1 - torch.where(grows, safe, torch.inf).clamp(max=1 - self.factor))


@fade("angle-safe")
def angle_safe(units: TrainedUnits) -> Update:
    """`AngleSafe` on the units that fade; the weights before a step are kept of these only."""
    if any(group.get("lr") is None for group in units.holder.param_groups):
        raise MethodError(
            "An angle-safe fade is measured in steps of the optimizer, but "
            f"{type(units.holder).__qualname__} has no learning rate in its param groups. Add 'lr' to each of "
            "them, or fade linearly."
        )
    return RuleUpdate(units, lambda step, left: AngleSafe(1.0 if left is None else left), lambda step: FADING)
