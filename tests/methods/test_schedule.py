"""What a schedule promises, for all small schedules."""

from __future__ import annotations

import itertools

import pytest

from niwaki.errors import MethodError
from niwaki.methods.schedule import Schedule, Timeline

SCHEDULES = [
    (Schedule(start, start + length, periods), window)
    for start, length, periods, window in itertools.product((1, 2, 7), range(1, 14), (1, 2, 3, 10), (1, 3, 10))
    if length >= periods
]


def test_every_schedule() -> None:
    for schedule, window in SCHEDULES:
        line = Timeline.of(schedule, window)
        steps = range(1, schedule.until + 5)
        scored = [step for step in steps if line.scores(step)]
        selected = [step for step in steps if line.selects(step) is not None]
        fading = [step for step in steps if line.factor(step) is not None]
        assert scored[0] == schedule.start
        assert len(selected) == line.periods == schedule.periods
        assert [line.selects(step) for step in selected] == list(range(schedule.periods))
        assert set(selected) <= set(scored)
        assert 1 <= line.window <= window
        assert fading == list(range(selected[0] + 1, schedule.until + 1))
        ends = [step for step in fading if line.factor(step) == 0]
        assert ends == [*selected[1:], schedule.until]


def test_a_period_fades_linearly() -> None:
    line = Timeline.of(Schedule(start=3, until=12, periods=2), window=2)
    assert (line.window, line.borders) == (2, (4, 8, 12))
    level, levels = 1.0, []
    for step in range(5, 9):
        factor = line.factor(step)
        assert factor is not None
        level *= factor
        levels.append(level)
    assert levels == pytest.approx([0.75, 0.5, 0.25, 0.0])


@pytest.mark.parametrize("name", ["start", "until", "periods"])
@pytest.mark.parametrize("value", [0, -1, 2.5, True, "3"])
def test_numbers_must_be_whole(name: str, value: object) -> None:
    with pytest.raises(MethodError, match=rf"Schedule\({name}=.* must be a whole number, 1 or more: "):
        Schedule(**{"start": 1, "until": 20, "periods": 2} | {name: value})  # type: ignore[arg-type]


def test_too_short() -> None:
    with pytest.raises(MethodError, match="has 5 steps after its first scoring .* too few for 10 periods"):
        Schedule(start=10, until=15)


@pytest.mark.parametrize(("start", "until", "what"), [(500, 100, "comes before it"), (7, 7, "is the start itself")])
def test_an_end_that_is_no_later_than_the_start(start: int, until: int, what: str) -> None:
    told = rf"starts at step {start}, but its end, until={until}, {what}\. .* Schedule\(start={start}, "
    with pytest.raises(MethodError, match=rf"{told}until={start + until}\)"):
        Schedule(start=start, until=until)
