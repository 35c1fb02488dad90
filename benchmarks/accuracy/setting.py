"""What an arm is given: the task, and what every arm of a comparison has to keep to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import niwaki
from benchmarks.accuracy.task import Task

DEFAULT_MOMENT = 0.35  # where `niwaki train` ends a method's schedule
START = 0.1 / DEFAULT_MOMENT  # where it begins, as a share of the moment


@dataclass(frozen=True, slots=True)
class Setting:
    """``share``: how much of the dense network's ``limited`` to keep, its MACs or units. ``moment``: the share of the
    run after which the last removed unit is zero. ``widths``: of HESSO's network for this budget at its own moment and
    seed 0, for arms that need it."""

    task: Task
    seed: int
    share: float = 1.0
    moment: float = DEFAULT_MOMENT
    widths: Sequence[int] | None = None
    limited: str = "macs"

    @property
    def budget(self) -> niwaki.Budget:
        """What must hold from the moment on."""
        return niwaki.Budget(**{self.limited: self.share})

    @property
    def until(self) -> int:
        """The moment in steps."""
        return round(self.moment * self.task.recipe.steps)

    @property
    def start(self) -> int:
        """The step on which what prunes gradually begins: the share of the moment that it is in `niwaki train`."""
        return min(max(1, round(START * self.until)), max(0, self.until - 1))
