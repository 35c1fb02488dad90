"""When a method scores, removes and is done, in optimizer steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from niwaki.errors import MethodError
from niwaki.methods.fades import LINEAR, fade_named
from niwaki.selection.budget import is_whole

STABLE = "stable"

LEAST_STEPS = 10

# Shares of a run: when scoring starts, and when the last removed unit is zero (benchmarks/accuracy/RESULTS.md).
_FROM_SCRATCH = (0.1, 0.35)
_PRETRAINED = (0.03, 0.1)

RAMPS = {"linear": 1, "cubic": 3}  # by name: the power of the share of periods that is left


@dataclass(frozen=True, slots=True, init=False)
class Schedule:
    """The steps of a method, counted in calls of ``optimizer.step()``, the first being step 1.

    ``start``: the step on which the first scoring happens. ``until``: the last step on which anything that is to go is
    not yet zero: after it the budget is met. ``periods``: in how many portions units leave.

    ``start="stable"``, for HESSO: units begin to leave when it has become clear which, at the latest after three
    quarters of the steps to ``until``. `of` gives a schedule from the length of a run alone.

    ``ramp``: how large the portions are. ``"linear"``: equal shares of the way to the budget. ``"cubic"``: after p of P
    portions (1 - p / P)^3 of the way is left, so that most leaves early, when there is most time to recover.

    ``fade``: how units come to zero within their period, a name in `niwaki.methods.fades.fades`: ``"linear"``, or
    ``"angle-safe"`` (see `AngleSafe`). HESSO and HESSO-CRIC fade; methods that do not refuse any other than the first.

    Raises:
        MethodError: not whole numbers, too few steps for the periods, or an unknown ramp.
        UnknownName: there is no fade of that name.

    >>> Schedule(start=100, until=500, periods=10)
    Schedule(start=100, until=500, periods=10, ramp='linear', fade='linear', stable=False)
    """

    start: int
    until: int
    periods: int
    ramp: str
    fade: str
    stable: bool

    def __init__(
        self,
        start: int | Literal["stable"],
        until: int,
        periods: int = 10,
        ramp: str = "linear",
        fade: str = LINEAR,
        stable: bool = False,
    ) -> None:
        if start == STABLE:
            start, stable = 1, True
        values = {"start": start, "until": until, "periods": periods, "ramp": ramp, "fade": fade, "stable": stable}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        self._check()

    @classmethod
    def of(cls, steps: int, *, pretrained: bool = False) -> Schedule:
        """The default schedule of a training of ``steps`` optimizer steps.

        Args:
            steps: of the whole training.
            pretrained: the network has been trained before, and is only fine-tuned.

        Raises:
            MethodError: there are too few steps to prune in.

        >>> Schedule.of(1000)
        Schedule(start=100, until=350, periods=10, ramp='linear', fade='linear', stable=False)
        """
        if not is_whole(steps) or steps < LEAST_STEPS:
            raise MethodError(
                f"steps={steps!r} must be a whole number, {LEAST_STEPS} or more: the optimizer steps of the training."
            )
        if not isinstance(pretrained, bool):
            raise MethodError(
                f"pretrained={pretrained!r} must be True or False: whether the network is trained already."
            )
        start, until = _PRETRAINED if pretrained else _FROM_SCRATCH
        first = max(1, round(start * steps))
        last = max(first + 1, round(until * steps))
        return cls(first, last, min(10, last - first))

    def _check(self) -> None:
        for name, value, why in (
            ("start", self.start, "the step on which the first scoring happens (the first step is 1), or 'stable'"),
            ("until", self.until, "the last step on which anything is not yet zero"),
            ("periods", self.periods, "the number of portions in which units leave"),
        ):
            if not is_whole(value) or value < 1:
                raise MethodError(f"Schedule({name}={value!r}) must be a whole number, 1 or more: {why}.")
        if self.until <= self.start:
            when = "is the start itself" if self.until == self.start else "comes before it"
            raise MethodError(
                f"The schedule starts at step {self.start}, but its end, until={self.until}, {when}. Both count steps "
                f"from the beginning of the training: until is not a length. For {self.until} steps from the start on "
                f"write Schedule(start={self.start}, until={self.start + self.until})."
            )
        if self.until - self.start < self.periods:
            raise MethodError(
                f"The schedule has {self.until - self.start} steps after its first scoring (start={self.start}, "
                f"until={self.until}), too few for {self.periods} periods of at least one step each. "
                "Let it end later, or use fewer periods."
            )
        if not isinstance(self.ramp, str) or self.ramp not in RAMPS:
            raise MethodError(f"Schedule(ramp={self.ramp!r}) is not a ramp. Choose one of: {', '.join(RAMPS)}.")
        fade_named(self.fade)

    def portion(self, to_go: int) -> float:
        """The share of the way from here to the budget that leaves next, with ``to_go`` portions left.

        >>> [Schedule(start=1, until=9, periods=2, ramp=ramp).portion(2) for ramp in ("linear", "cubic")]
        [0.5, 0.875]
        """
        return 1 / to_go if RAMPS[self.ramp] == 1 else 1 - (1 - 1 / to_go) ** RAMPS[self.ramp]

    @property
    def data(self) -> list[Any]:
        """As plain data; what is as published is left out."""
        more = [self.ramp, self.fade] if (self.ramp, self.fade) != ("linear", LINEAR) else []
        return [[STABLE, self.start] if self.stable else self.start, self.until, self.periods, *more]

    @classmethod
    def check(cls, schedule: object, label: str | None = None) -> None:
        """Raise `MethodError` if what was passed is not a schedule, such as a number of steps; or, for the method
        ``label``, one whose start is not known."""
        if not isinstance(schedule, cls):
            raise MethodError(
                f"schedule={schedule!r} is not a schedule. Say when: niwaki.Schedule(start=100, until=500) in steps."
            )
        if schedule.stable and label is not None:
            raise MethodError(
                f"{label} cannot start when choices are stable: only HESSO chooses again and again before it starts. "
                "Give the step, such as niwaki.Schedule(start=100, until=500), or take HESSO."
            )

    def check_ramp(self, label: str) -> None:
        """Raise `MethodError` if this is a schedule for methods that choose in portions."""
        if self.ramp != "linear":
            raise MethodError(
                f"The schedule has the ramp {self.ramp!r}, but {label} does not choose units in portions. Leave it "
                "out, or use HESSO, HESSO-CRIC or LHSPG."
            )

    def check_fade(self, label: str) -> None:
        """Raise `MethodError` if this is a schedule for methods that fade."""
        if self.fade != LINEAR:
            raise MethodError(
                f"The schedule has the fade {self.fade!r}, but {label} does not fade what leaves. Leave it out, or use "
                "HESSO or HESSO-CRIC."
            )


@dataclass(frozen=True, slots=True)
class Timeline:
    """A schedule with an averaging window of ``window`` steps before each selection (fewer where there is no room).

    Period p begins with the selection at the end of step ``borders[p]``, and what it selected is zero after step
    ``borders[p + 1]``; ``borders[-1]`` is the schedule's ``until``.
    """

    window: int
    borders: tuple[int, ...]

    @classmethod
    def of(cls, schedule: Schedule, window: int) -> Timeline:
        """The timeline of ``schedule``: its first window begins at ``start``, its periods are equally long."""
        steps = schedule.until - schedule.start + 1
        width = max(1, min(window, steps // (schedule.periods + 1)))
        first = schedule.start + width - 1
        length = (schedule.until - first) / schedule.periods
        return cls(width, tuple(first + round(p * length) for p in range(schedule.periods + 1)))

    @property
    def periods(self) -> int:
        """How many selections there are."""
        return len(self.borders) - 1

    def scores(self, step: int) -> bool:
        """Whether ``step`` lies in the window before a selection."""
        return any(border - self.window < step <= border for border in self.borders[:-1])

    def selects(self, step: int) -> int | None:
        """The period that begins at the end of ``step``, if one does."""
        return self.borders.index(step) if step in self.borders[:-1] else None

    def factor(self, step: int) -> float | None:
        """(T - t - 1) / (T - t) on step t = 0 ... T - 1 of a period of T steps; None outside the periods."""
        for before, after in zip(self.borders, self.borders[1:], strict=False):
            if before < step <= after:
                return (after - step) / (after - step + 1)
        return None

    def reviews(self, step: int) -> bool:
        """Whether ``step`` is the middle of a period of at least four steps."""
        return any(
            step == (before + after) // 2 and after - before >= 4
            for before, after in zip(self.borders, self.borders[1:], strict=False)
        )

    def previews(self, step: int) -> float | None:
        """In the averaging window before the middle of a period: how many times larger what fades was when it began to.
        None outside these windows."""
        for before, after in zip(self.borders, self.borders[1:], strict=False):
            middle = (before + after) // 2
            if max(before, middle - self.window) < step <= middle and self.reviews(middle):
                return (after - before) / (after - step + 1)
        return None


def fitting_cycles(schedule: Schedule, opens: int, cycle: int | None, cycles: int) -> tuple[int, int]:
    """Steps per cycle and how many cycles, at most ``cycles``, that fit between the end of step ``opens`` and the last
    periods of one step each. With ``cycle`` None all of them together take at most an eighth of those steps (one cycle
    at least): cycles are taken back, and what they take the training never gets. A cycle has four steps then, or more,
    where there is room: one of two steps sees nothing smaller than half of what it was.

    Raises:
        MethodError: ``cycle`` is not a number of steps in which something can fade, or not even one such cycle fits.

    >>> fitting_cycles(Schedule(start=1, until=101, periods=10), 1, None, 10)
    (4, 3)
    >>> fitting_cycles(Schedule(start=1, until=1001, periods=10), 1, None, 10)
    (12, 10)
    """
    room = schedule.until - opens - schedule.periods
    steps = max(2, min(4, room), _trials(schedule, opens) // cycles) if cycle is None else cycle
    if not is_whole(steps) or steps < 2:
        raise MethodError(f"cycle={cycle!r} must be a whole number of steps, 2 or more: a trial fades in them.")
    if steps > room:
        raise MethodError(
            f"The schedule has {schedule.until - opens} steps after its first window, which ends with step {opens}: "
            f"too few for a cycle of {steps} steps and {schedule.periods} periods of at least one step each. Let it "
            "end later, or use fewer periods or shorter cycles."
        )
    most = room if cycle is not None else max(int(steps), min(room, _trials(schedule, opens)))
    return int(steps), min(cycles, most // int(steps))


def _trials(schedule: Schedule, opens: int) -> int:
    """The steps that cycles may take by default. With half of the schedule short runs end 0.6 points of accuracy lower
    at 50 % of the MACs, and no higher at a tenth of the units (benchmarks/accuracy/RESULTS.md)."""
    return (schedule.until - opens) // 8
