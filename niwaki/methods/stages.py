"""The stages of Auto-Train-Once between the two ends of its schedule."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.methods.schedule import Schedule

PROJECT, FREEZE, FADE = 0.2, 0.6, 0.9  # shares of the way from start to until
EVERY, LEAST = 20, 60  # steps of the optimizer for each of the controller, and how many of these there should be


@dataclass(frozen=True, slots=True)
class Stages:
    """On step ``start`` the controller takes its first step; from ``project`` on units that are masked are projected;
    at the end of ``freeze`` the mask is fixed; what is left of its units after ``fade`` fades until ``until``."""

    start: int
    project: int
    freeze: int
    fade: int
    until: int

    @classmethod
    def of(cls, schedule: Schedule) -> Stages:
        """Those of a schedule.

        >>> Stages.of(Schedule(start=100, until=1100))
        Stages(start=100, project=300, freeze=700, fade=1000, until=1100)
        """
        way = schedule.until - schedule.start
        project, freeze, fade = (schedule.start + round(share * way) for share in (PROJECT, FREEZE, FADE))
        last = schedule.until - 1
        return cls(schedule.start, min(project, last), min(freeze, last), min(fade, last), schedule.until)

    @property
    def every(self) -> int:
        """After how many steps of the optimizer the controller takes one, rounded down: 20, or fewer where it would not
        come to 60 steps otherwise."""
        return max(1, min(EVERY, self._way // LEAST))

    def controls(self, step: int) -> bool:
        """Whether the controller takes a step before ``step``: a multiple of 20 steps after ``start``, or the first
        behind each sixtieth of its time where that is shorter."""
        since = step - self.start
        if not 0 <= since <= self._way:
            return False
        return since % EVERY == 0 if self._way >= EVERY * LEAST else since * LEAST % max(1, self._way) < LEAST

    @property
    def controller_steps(self) -> int:
        """How many it takes."""
        return (self._way // EVERY if self._way >= EVERY * LEAST else min(LEAST, self._way)) + 1

    @property
    def _way(self) -> int:
        return self.freeze - self.start

    def progress(self, step: int) -> float:
        """The share of its time that the controller has had before ``step``, from 0 to 1."""
        return min(1.0, max(0.0, (step - self.start) / max(1, self.freeze - self.start)))

    def left(self, step: int) -> float | None:
        """What share of a unit is left after ``step`` of what there was before it; None before units fade."""
        return None if not self.fade < step <= self.until else (self.until - step) / (self.until - step + 1)
