"""The linear fade, as published for HESSO: what a unit holds goes to zero in equal steps."""

from __future__ import annotations

from typing import final

from niwaki.methods.fades import FADING, LINEAR, fade
from niwaki.methods.parts import Stateless, Update
from niwaki.methods.trained_units import TrainedUnits
from niwaki.per_unit.protocol import UnitUpdate


@fade(LINEAR)
@final
class LinearFade(Stateless, Update):
    """Every unit is multiplied by (T - t - 1) / (T - t), as published for HESSO."""

    def __init__(self, units: TrainedUnits) -> None:
        self._units = units

    def before(self, step: int, left: float | None) -> None:
        """Nothing to keep."""

    def act(self, step: int, left: float | None) -> None:
        """All units alike."""
        if left and self._units.subset is not None:
            self._units.subset.apply(UnitUpdate(keep=left))

    def phase(self, step: int) -> str:
        """One word."""
        return FADING
