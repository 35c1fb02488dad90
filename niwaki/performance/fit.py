"""Find the largest choice within measured limits: networks are cut and run until one is just small enough."""

from __future__ import annotations

import logging
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import BudgetError
from niwaki.performance.meters import Limit, Readings
from niwaki.performance.predict import OperatorTimes, Unpredictable, predicted, priced, reading
from niwaki.selection import costs
from niwaki.selection.budget import in_the_way
from niwaki.surgery.cut import cut

_HALVINGS = 14
_TRIALS = 6
_LAST = 3  # the number of trials that correct the predictions
_TINY = 1e-9
_WRONG = 2.0  # or more times as much was saved as predicted, or less than half of it: then nothing was predicted

_LOG = logging.getLogger("niwaki")
Selected = Callable[[Mapping[str, float], SearchSpace], BoolArray]


@dataclass(frozen=True, slots=True, eq=False)
class Trial:
    """A choice ``keep`` [num_units] that was cut and measured: ``used``, the fraction of the tightest limit, and all
    readings of the meters."""

    keep: BoolArray
    used: float
    told: Readings


def fit_latency(
    space: SearchSpace, wanted: Mapping[str, Limit], keep: BoolArray, limits: Mapping[str, float], selected: Selected
) -> tuple[Trial, str]:
    """A choice within every measured limit, with the readings, and a sentence on how it was found.

    ``keep``: the choice under ``limits`` alone; ``selected(limits, space)``: the choice under other limits, by the
    costs of that space. A limit of latency is met by limits of predicted latency, which every measured network
    corrects; where latency cannot be predicted, and for other measures, by limits of MACs.

    Raises:
        BudgetError: the smallest network of all is still too large.
    """
    first = _tried(space, wanted, keep)
    if first.used <= 1:
        return first, "The measured limits are met by the choice under the other limits."
    by = next((measure for measure, meter in wanted.items() if meter.timed is not None), None)
    why = "no operators are timed"
    if by is not None:
        try:
            return _by_operators(space, wanted, by, first, limits, selected)
        except Unpredictable as cause:
            why = f"the times of operators do not predict the latency here: {cause}"
    return _halved(space, wanted, "macs", [first], limits, selected), f"Units were priced by their MACs, since {why}."


def _by_operators(
    space: SearchSpace,
    wanted: Mapping[str, Limit],
    by: str,
    first: Trial,
    limits: Mapping[str, float],
    selected: Selected,
) -> tuple[Trial, str]:
    """Choose by limits of predicted latency, corrected by the measured latency of the trials so far.

    Two trials have to be tight: the prices of the second are measured at nearly its own widths.

    Raises:
        Unpredictable: the times of operators do not predict the latency.
    """
    meter, everything = wanted[by], np.ones(space.num_units, dtype=bool)
    readings = [read_operators(space, meter, first.keep)]
    model, trials, tight = priced(space, readings), [first], list[Trial]()
    while len(trials) <= _TRIALS and len(tight) < 2:
        limit = _next_share(model, wanted, by, trials) * costs(model.cost_model, everything, ["latency"])["latency"]
        keep = selected({**limits, "latency": limit}, model)
        if any(np.array_equal(keep, trial.keep) for trial in trials):
            break
        trial = _tried(space, wanted, keep)
        trials.append(trial)
        tight += [trial] * (trial.used <= 1 and _is_tight(wanted, trial))
        readings.append(read_operators(space, meter, keep))
        model = priced(space, readings)
    found = tight[-1] if tight else _halved(model, wanted, "latency", trials, limits, selected)
    told = found.told[by]
    return found, (
        f"Units were priced by the time that operators take, in {len(readings)} networks beside the dense one; "
        f"{predicted(model, found.keep):.1%} of its {by} are predicted from these, {told['kept'] / told['dense']:.1%} "
        "were measured."
    )


def _next_share(model: SearchSpace, wanted: Mapping[str, Limit], by: str, trials: list[Trial]) -> float:
    """The fraction of the predicted latency that should bring the tightest meter into the middle of its gap.

    Raises:
        Unpredictable: the last trials saved far more or less than the corrected prediction says.
    """
    meter, last = wanted[by], trials[-1]
    aim = 1 - meter.gap / 2
    told = [one.told[by] for one in trials]
    said = [max(1 - predicted(model, one.keep), _TINY) for one in trials]
    factors = [(1 - one["kept"] / one["dense"]) / less for one, less in zip(told, said, strict=True)]
    known = [factor for factor, one in zip(factors, trials, strict=True) if not one.keep.all()]
    factor = statistics.median(known[-_LAST:]) if known else 1.0
    if not 1 / _WRONG <= factor <= _WRONG:
        raise Unpredictable(f"{factor:.2f} times as much is saved as they predict")
    if meter.filled(**last.told[by]) < last.used:  # tightest in another measure, which is not predicted
        return predicted(model, last.keep) * aim / last.used
    dense = last.told[by]["dense"]
    return max(1 - (1 - aim * meter.amount(dense) / dense) / factor, 0.0)


def _halved(
    space: SearchSpace,
    wanted: Mapping[str, Limit],
    by: str,
    trials: list[Trial],
    limits: Mapping[str, float],
    selected: Selected,
) -> Trial:
    """The largest choice by limits of the measure ``by``, found by halving an interval that ``trials`` narrow first.
    This assumes that the measured quantity mostly grows with that measure.

    Raises:
        BudgetError: the smallest network of all is still too large.
    """

    def cost(trial: Trial) -> float:
        return costs(space.cost_model, trial.keep, [by])[by]

    def under(limit: float) -> BoolArray:
        return selected({**limits, by: min(limit, limits.get(by, limit))}, space)

    fitting = [trial for trial in trials if trial.used <= 1]
    best = max(fitting, key=cost) if fitting else _tried(space, wanted, under(0.0))
    if best.used > 1:
        raise _unreachable(space, wanted, best.told)
    failing = min((t for t in trials if t.used > 1 and cost(t) > cost(best)), key=cost, default=trials[0])
    low, high = cost(best), cost(failing)
    for _ in range(_HALVINGS):
        if _is_tight(wanted, best):
            break
        middle = (low + high) / 2
        keep = under(middle)
        if np.array_equal(keep, best.keep):
            low = middle
        elif np.array_equal(keep, failing.keep):
            high = middle
        else:
            trial = _tried(space, wanted, keep)
            if trial.used <= 1:
                low, best = middle, trial
            else:
                high, failing = middle, trial
    return best


def _tried(space: SearchSpace, wanted: Mapping[str, Limit], keep: BoolArray) -> Trial:
    """Cut a network to a choice and measure it."""
    network = cut(space.model, space.plan(keep))
    readings = {measure: meter.read(network) for measure, meter in wanted.items()}
    used = max(wanted[measure].filled(*one) for measure, one in readings.items())
    shares = ", ".join(f"{kept / dense:.1%} of the {measure}" for measure, (kept, dense) in readings.items())
    _LOG.info("A network was cut and measured: %s, %.1f %% of what the budget allows.", shares, 100 * used)
    return Trial(keep, used, {measure: {"kept": kept, "dense": dense} for measure, (kept, dense) in readings.items()})


def read_operators(space: SearchSpace, meter: Limit, keep: BoolArray) -> OperatorTimes:
    """The times of the operators in the network cut to ``keep`` [num_units].

    Raises:
        Unpredictable: it does not run, or runs other operators than the search space was made from.
    """
    assert meter.timed is not None
    try:
        times = meter.timed(cut(space.model, space.plan(keep)))
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as cause:
        raise Unpredictable(f"{type(cause).__qualname__}: {cause}") from cause
    return reading(space, keep, *times)


def _is_tight(wanted: Mapping[str, Limit], trial: Trial) -> bool:
    return any(meter.filled(**trial.told[measure]) >= 1 - meter.gap for measure, meter in wanted.items())


def _unreachable(space: SearchSpace, wanted: Mapping[str, Limit], told: Readings) -> BudgetError:
    """The error for the smallest possible network, whose readings ``told`` are above the limits."""
    measure = max(wanted, key=lambda name: wanted[name].filled(**told[name]))
    meter, reading = wanted[measure], told[measure]
    limit = meter.amount(reading["dense"])
    return BudgetError(
        f"The budget {measure} <= {limit:,.0f} {meter.unit} ({limit / reading['dense']:.1%} of "
        f"{reading['dense']:,.0f}) cannot be met: with every group at its least size {reading['kept']:,.0f} "
        f"({reading['kept'] / reading['dense']:.1%}) were measured. {in_the_way(space)} Ask for more {measure}, or "
        "remove what is in the way."
    )
