"""A penalty that grows on all units before the first of them is chosen, and then leaves the rest to another update."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from niwaki.errors import MethodError
from niwaki.methods.checks import check_number
from niwaki.methods.parts import Update
from niwaki.methods.trained_units import TrainedUnits
from niwaki.per_unit.protocol import UnitSubset, UnitUpdate
from niwaki.selection import UNITS


@final
class Separation(Update):
    """Up to the end of step ``pick``, the first selection, all that can leave is under a penalty that rises with every
    step, as in GReg-2; by itself it would leave the share ``left`` of each. From then on ``then`` acts alone.

    The penalty is the implicit step on lambda / 2 ||x||^2, x <- y / (1 + lr lambda), whose factors on step s = 1 ...
    ``pick`` are left ** (2 s / (pick (pick + 1))): their logarithms rise linearly, and their product is ``left``.
    """

    def __init__(self, units: TrainedUnits, left: float, pick: int, then: Update) -> None:
        self._units, self._left, self._pick, self._then = units, left, pick, then
        self._everything: UnitSubset | None = None

    @classmethod
    def before_first(cls, units: TrainedUnits, separate: float | None, pick: int | None, then: Update) -> Update:
        """``then``, and before the selection at the end of step ``pick`` the penalty, if one is asked for.

        Raises:
            MethodError: ``separate`` is not a share above 0 and below 1, structures leave, or ``pick`` is None as
                nobody knows when the first selection will be.
        """
        if separate is None:
            return then
        check_number("separate", separate, 0, 1, "it is the share of each unit that the penalty by itself would leave")
        if not separate:
            raise MethodError("separate=0 would leave nothing to choose from. Give the share to leave, such as 0.65.")
        if units.removal is not UNITS:
            raise MethodError(
                "separate= shrinks all units alike before the first selection, and "
                f"remove={units.removal.name!r} takes structures, which hold units and one another. Leave separate= "
                "out, or use remove='units'."
            )
        if pick is None:
            raise MethodError(
                "separate= needs to know the step of the first selection, which Schedule(start='stable') decides while "
                "it trains. Give the start as a step, or leave separate= out."
            )
        return cls(units, float(separate), pick, then)

    def before(self, step: int, left: float | None) -> None:
        """As the other."""
        self._then.before(step, left)

    def act(self, step: int, left: float | None) -> None:
        """One step of the penalty on all units, or of the other update."""
        if step > self._pick:
            self._then.act(step, left)
            return
        if self._everything is None:  # nothing has left before the first selection, so that it is looked up once
            self._everything = self._units.engine.subset(UNITS.candidates(self._units.space))
        keep = self._left ** (2 * step / (self._pick * (self._pick + 1)))
        self._everything.apply(UnitUpdate(keep=keep))
        if step == self._pick:
            self._everything = None

    def phase(self, step: int) -> str:
        """On all units, or as the other."""
        return "separating" if step <= self._pick else self._then.phase(step)

    def settings(self) -> dict[str, Any]:
        """The share, beside the settings of the other."""
        return {"separate": self._left, **self._then.settings()}

    def state(self) -> dict[str, Any]:
        """That of the other: the penalty follows from the step."""
        return self._then.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._then.restore(state)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """As the other asks."""
        self._then.check_state(state)
