"""The angle-safe fade of GETA: a unit that the training wants to grow fades no faster than the loss still descends."""

from __future__ import annotations

from typing import final

import torch

from niwaki.core.space import BoolArray
from niwaki.errors import MethodError
from niwaki.methods.fades import Fade, Faded, fade
from niwaki.per_unit.fast import FastPerUnit
from niwaki.per_unit.plain import PlainPerUnit
from niwaki.per_unit.protocol import IterateSums, PerUnit, UnitIterates, UnitUpdate, UpdateRule

SHARE = 1e-3  # 1 - eta, of the largest rate that descends


class AngleSafe(UpdateRule):
    """With y the weights of a unit after the optimizer's step, d its direction and lr the learning rate, y becomes
    (1 - rate) y, where

        rate = 1 - factor                                            where <y, d> >= 0, or nothing moves
        rate = (1 - eta) <lr d, d> / -<y, d>, but no more than that  where <y, d> < 0

    which for one learning rate is -(1 - eta) lr ||d|| / (cos(y, d) ||y||). The whole step -lr d - rate y descends along
    d as long as rate < <lr d, d> / -<y, d>. It never fades faster than linearly, which for weights near zero the
    formula by itself would.
    """

    def __init__(self) -> None:
        self.factor = 1.0

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
@final
class AngleSafeFade(Fade):
    """`AngleSafe` on the units that fade; the weights before a step are kept of these only."""

    def __init__(self, faded: Faded) -> None:
        super().__init__(faded)
        if any(group.get("lr") is None for group in faded.optimizer.param_groups):
            raise MethodError(
                "An angle-safe fade is measured in steps of the optimizer, but "
                f"{type(faded.optimizer).__qualname__} has no learning rate in its param groups. Add 'lr' to each of "
                "them, or fade linearly."
            )
        self._iterates: PerUnit | None = None
        self._rule = AngleSafe()

    def mark(self, fading: BoolArray) -> None:
        """The iterates of these units."""
        kind = FastPerUnit if self.faded.vectorised else PlainPerUnit
        self._iterates = kind(self.faded.space, self.faded.optimizer, fading) if fading.any() else None

    def remember(self) -> None:
        """Keep the weights before the step."""
        if self._iterates is not None:
            self._iterates.remember()

    def shrink(self, factor: float) -> None:
        """Each unit by its own rate."""
        if self._iterates is not None:
            self._rule.factor = factor
            self._iterates.apply(self._iterates.change(self._rule))
