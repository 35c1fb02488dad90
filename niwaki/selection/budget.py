"""Budgets: limits on the cost of the cut network."""

from __future__ import annotations

import math
import platform
from collections import defaultdict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from niwaki.core.cost import Cost
from niwaki.core.scalars import is_number as is_number
from niwaki.core.scalars import is_whole as is_whole
from niwaki.core.space import BoolArray, Pin, SearchSpace, check_space
from niwaki.errors import BudgetError
from niwaki.selection import (
    STRUCTURES,
    UNITS,
    Removal,
    Widths,
    check_erased,
    check_some,
    costs,
    how_many_erased,
    next_step,
)
from niwaki.version import __version__

MODELLED = ("macs", "params", "units", "memory")
MEASURED = ("activations", "latency")
TRAINED = (*MODELLED, "activations")  # the measures that a method can follow: it cannot run cut networks
_FREE = Widths()
_TIGHT = 0.01
_PERCENT = 100
_LITTLE = 0.05  # of the parameters: fewer are not what keeps a budget from being met


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on the cost of the cut network; all of them are met.

    A float in (0, 1] is the fraction of the dense network to keep, a whole number above 1 the absolute amount: ``macs``
    multiply-accumulates for the example input, ``params`` parameters, ``units`` prunable units, ``memory`` bytes of
    parameters and buffers. These are known for any choice of units, and so is ``activations``, the most bytes of
    computed tensors alive at once in one forward pass in eval mode, for the inputs of the search space. With example
    inputs, `niwaki.choose` measures ``activations`` on cut networks instead, and also ``latency``, the microseconds of
    that pass on the device of the model. In a space that is `niwaki.timed` a fraction of the ``latency`` is known, too,
    as it is predicted from the times of operators.

    ``round_to``: every weight keeps a multiple of this many entries of each dimension in which it produces units, or
    all of them; with 32 the channels of a convolution are removed by 32, and attention heads of 32 rows one by one. A
    dict sets it for some weights only, by their names, the names of modules or groups, or patterns of these:
    ``round_to={"*mlp*": 32}``; where several entries name a weight, all hold. ``min_units``: every group keeps at least
    this many units.

    Raises:
        BudgetError: a limit is neither a fraction nor an amount, no limit is set, or ``round_to`` or ``min_units`` is
            not a whole number, 1 or more.

    >>> print(Budget(macs=0.5, params=1_000_000, round_to=8))
    macs <= 50.0%, params <= 1,000,000, widths in multiples of 8
    >>> print(Budget(macs=0.5, round_to={"*mlp*": 32, "*.q_proj": 64}))
    macs <= 50.0%, widths in multiples of 32 for *mlp*, widths in multiples of 64 for *.q_proj
    """

    macs: float | int | None = None
    params: float | int | None = None
    units: float | int | None = None
    memory: float | int | None = None
    activations: float | int | None = None
    latency: float | int | None = None
    round_to: int | Mapping[str, int] = field(default=1, hash=False)
    min_units: int = 1

    def __post_init__(self) -> None:
        limits = self.limits
        if not limits:
            raise BudgetError(
                f"A budget needs at least one limit, one of {', '.join(MODELLED + MEASURED)}: Budget(macs=0.5)."
            )
        for measure, limit in limits.items():
            share = is_number(limit) and not is_whole(limit) and 0 < limit <= 1
            if not share and not (is_whole(limit) and limit > 1):
                percent = is_number(limit) and 1 < limit <= _PERCENT
                meant = f" Did you mean {measure}={limit / _PERCENT:g}?" if percent else ""
                raise BudgetError(
                    f"{measure}={limit!r} is not a budget: pass a float in (0, 1], the fraction to keep, or a whole "
                    f"number above 1, the absolute amount.{meant}"
                )
        object.__setattr__(self, "round_to", _checked_round_to(self.round_to))
        if not is_whole(self.min_units) or self.min_units < 1:
            raise BudgetError(f"min_units={self.min_units!r} must be a whole number of units, 1 or more.")
        object.__setattr__(self, "min_units", int(self.min_units))
        for measure, limit in limits.items():  # numpy's numbers as Python's, which files can hold
            object.__setattr__(self, measure, int(limit) if is_whole(limit) else float(limit))

    @property
    def limits(self) -> dict[str, float | int]:
        """The limits that are set, as the user gave them."""
        given = {
            "macs": self.macs,
            "params": self.params,
            "units": self.units,
            "memory": self.memory,
            "activations": self.activations,
            "latency": self.latency,
        }
        return {measure: limit for measure, limit in given.items() if limit is not None}

    @property
    def measured(self) -> dict[str, float | int]:
        """The limits that can only be checked by a measurement."""
        return {measure: limit for measure, limit in self.limits.items() if measure in MEASURED}

    def absolute(self, space: SearchSpace, measures: Collection[str] = MODELLED) -> dict[str, float]:
        """The limits among ``measures``, which need no measurement, as amounts, for the model of ``space``.

        Raises:
            BudgetError: activations are among them and not known, the latency is and is no fraction, or the network's
                cost in a measure is zero.
        """
        modelled = {measure: limit for measure, limit in self.limits.items() if measure in measures}
        if is_whole(modelled.get("latency")):
            raise BudgetError(
                f"latency={modelled['latency']!r} asks for microseconds, and a latency that is predicted from the "
                "times of operators is known as a fraction of the dense network's alone. Pass that fraction, such as "
                "latency=0.6, or measure: niwaki.choose(..., example_inputs=x) in a space that is not timed."
            )
        if "activations" in modelled and space.cost_model.activations is None:
            raise BudgetError(
                "The number of activations alive at once is not known for this search space, since no run of its "
                "network was recorded (adapters that are to be merged, or a space made by hand). Set a limit in macs, "
                "params, units or memory, or measure it: niwaki.choose(..., example_inputs=x)."
            )
        dense = costs(space.cost_model, np.ones(space.num_units, dtype=bool), modelled)
        for measure, cost in dense.items():
            nothing = measure == "units" and not is_whole(modelled[measure])  # a fraction of zero is met
            if not cost and not nothing:
                raise BudgetError(
                    f"The network has no {measure} (for the example inputs of the search space, where that matters), "
                    f"so {measure}={modelled[measure]!r} limits nothing. Set a limit in something else."
                )
        least = costs(space.cost_model, space.least_keep(), modelled)
        for measure, limit in modelled.items():
            few = is_whole(limit) and measure != "units" and limit <= _PERCENT and space.erasures is None
            if few and limit < least[measure]:
                raise BudgetError(
                    f"{measure}={limit} asks for {limit} {measure} in all, and the network cannot have fewer than "
                    f"{least[measure]:,.0f}. Did you mean {measure}={limit / _PERCENT:g}, {limit} %?"
                )
        return {
            measure: float(limit if is_whole(limit) else math.floor(Fraction(repr(limit)) * int(dense[measure])))
            for measure, limit in modelled.items()
        }

    @property
    def steps(self) -> Widths:
        """The widths that groups may keep."""
        return Widths(self.round_to, self.min_units)

    def __str__(self) -> str:
        parts = [f"{m} <= {v:,}" if is_whole(v) else f"{m} <= {v:.1%}" for m, v in self.limits.items()]
        return ", ".join(filter(None, [*parts, str(self.steps)]))


def _checked_round_to(round_to: object) -> int | dict[str, int]:
    """``round_to`` in Python's numbers; raises `BudgetError` if widths cannot be rounded to it."""
    if is_whole(round_to) and round_to >= 1:
        return int(round_to)
    by_pattern: Mapping[object, object] = round_to if isinstance(round_to, Mapping) else {}
    found = {
        pattern: int(n) for pattern, n in by_pattern.items() if isinstance(pattern, str) and is_whole(n) and n >= 1
    }
    if not found or len(found) < len(by_pattern):
        raise BudgetError(
            f"round_to={round_to!r} must be a whole number of entries, 1 or more, or such numbers by the names or "
            "patterns of weights: round_to={'*mlp*': 32}."
        )
    return found


def followed(space: SearchSpace, measures: tuple[str, ...] = TRAINED) -> tuple[str, ...]:
    """``measures``, and the latency where the cost model of ``space`` predicts it (`niwaki.timed`)."""
    return measures if space.cost_model.latency is None else (*measures, "latency")


def check_budget(
    budget: object, *, training: bool = True, space: SearchSpace | None = None, merged: bool = False
) -> None:
    """Raise `BudgetError` if ``budget`` is not one, such as a bare number, or if it has limits that a method cannot
    follow during a ``training`` in ``space``, which may be that of the network with its adapters ``merged``."""
    if not isinstance(budget, Budget):
        raise BudgetError(f"budget={budget!r} is not a budget. Name its measure: niwaki.Budget(macs=0.5).")
    if space is not None:
        check_space(space)
    known = TRAINED if space is None else followed(space)
    measure = next((measure for measure in budget.limits if measure not in known), None)
    if training and measure is not None:
        name = "merged" if merged else "space"
        predicts = " Or train in a space that predicts the latency: niwaki.timed(space, x)." * (measure == "latency")
        first = (
            f"{measure} is measured on networks that are cut, which a method cannot do during the training. First find "
            f"the MACs that meet it, plan = niwaki.choose({name}, niwaki.score({name}, 'magnitude'), "
            f"niwaki.Budget({measure}={budget.measured[measure]!r}), example_inputs=x),"
        )
        if merged:
            raise BudgetError(
                f"{first} where merged is the search space of a copy whose adapters are merged, and give the method "
                f"their fraction: niwaki.Budget(macs=merged.cost(plan).macs / merged.cost().macs).{predicts}"
            )
        raise BudgetError(f"{first} and give the method these: niwaki.Budget(macs=space.cost(plan).macs).{predicts}")


def check_left(
    space: SearchSpace,
    removal: Removal,
    keep: BoolArray,
    limits: Mapping[str, float],
    steps: Widths = _FREE,
    untrained: bool = False,
    silent: BoolArray | None = None,
) -> None:
    """Raise `BudgetError` if ``keep``, what ``removal`` has chosen, costs more than ``limits``, or where structures are
    to go and there is none; and `UnknownName` as `check_met` does. ``silent`` [num_units]: what stayed because its
    scores say nothing."""
    if removal is not UNITS:
        check_some(space, untrained)
    if removal is STRUCTURES:
        check_erased(space, keep, limits, untrained, silent)
    else:
        check_met(space, keep, limits, steps)


def check_met(space: SearchSpace, keep: BoolArray, limits: Mapping[str, float], steps: Widths = _FREE) -> None:
    """Raise `BudgetError` if ``keep``, the result of a selection, costs more than ``limits``, and `UnknownName` if a
    pattern of ``steps`` matches nothing."""
    steps.check(space)
    reached = costs(space.cost_model, keep, limits)
    sizes = f" ({steps})" if steps != _FREE else ""
    erased = how_many_erased(space, keep)
    sizes += f" and without {erased} structures" if erased else ""
    for measure, limit in limits.items():
        if reached[measure] <= limit:
            continue
        dense = costs(space.cost_model, np.ones(space.num_units, dtype=bool), limits)[measure]
        raise BudgetError(
            f"The budget {measure} <= {limit:,.0f} ({limit / dense:.1%} of {dense:,.0f}) cannot be met: with every "
            f"group at its least size{sizes} {reached[measure]:,.0f} ({reached[measure] / dense:.1%}) remain. "
            f"{in_the_way(space)} Ask for more {measure}, or remove what is in the way."
        )


def slack_note(space: SearchSpace, keep: BoolArray, limits: Mapping[str, float], budget: Budget) -> str | None:
    """A sentence that says why more than 1 % is unused under every limit; None if less is."""
    reached = costs(space.cost_model, keep, limits)
    tightest = max(limits, key=lambda measure: reached[measure] / max(limits[measure], 1.0))
    if reached[tightest] >= (1 - _TIGHT) * limits[tightest]:
        return None
    step = next_step(space, keep, limits, budget.steps)
    if step is None:
        return _coarse(space, keep, limits, tightest, reached[tightest])
    units, more = step
    names = dict.fromkeys(g.name for g in space.groups if ((units >= g.first) & (units < g.first + g.units)).any())
    over = max(limits, key=lambda measure: more[measure] / max(limits[measure], 1.0))
    return (
        f"{tightest} is {reached[tightest]:,.0f}, {1 - reached[tightest] / limits[tightest]:.1%} under its limit of "
        f"{limits[tightest]:,.0f}. The finest possible step, {len(units)} more of the units of {', '.join(names)}, "
        f"would make {over} {more[over]:,.0f}, with a limit of {limits[over]:,.0f}."
    )


def _coarse(space: SearchSpace, keep: BoolArray, limits: Mapping[str, float], tightest: str, now: float) -> str | None:
    """The same where all units are there, and only structures are not; None if none is erased."""
    back = {}
    for group in space.groups:
        if group.structure is not None and not keep[group.first]:
            more = keep.copy()
            more[group.first] = True
            cost = costs(space.cost_model, more, limits)[tightest]
            if cost > now:  # else something around it is erased
                back[space.structures[group.structure].name] = cost
    if not back:
        return None
    name = min(back, key=lambda name: back[name])
    return (
        f"{tightest} is {now:,.0f}, {1 - now / limits[tightest]:.1%} under its limit of {limits[tightest]:,.0f}. All "
        f"units outside of what is erased are kept, and with the smallest structure, {name}, it would be "
        f"{back[name]:,.0f}."
    )


def provenance(space: SearchSpace, keep: BoolArray, budget: Budget, **more: Any) -> dict[str, Any]:
    """The provenance of a plan, as plain data."""
    return {
        **more,
        "budget": {**budget.limits, "round_to": budget.round_to, "min_units": budget.min_units},
        "dense": _plain(space.cost()),
        "kept": _plain(space.cost_of(keep)),
        **_predicted(space, keep, budget),
        "entries_per_unit": {g.name: width for g in space.width_groups if (width := g.slices[0].index.shape[1]) > 1},
        "seed": torch.initial_seed(),
        "niwaki": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def _predicted(space: SearchSpace, keep: BoolArray, budget: Budget) -> dict[str, Any]:
    """What is left of a latency that is limited and predicted, as a fraction."""
    if "latency" not in budget.limits or space.cost_model.latency is None:
        return {}
    now, dense = (costs(space.cost_model, units, ["latency"])["latency"] for units in (keep, np.ones_like(keep)))
    return {"predicted": {"latency": now / dense}}


def _plain(cost: Cost) -> dict[str, int]:
    known = {"activations": cost.activations} if cost.activations else {}
    return {"params": cost.params, "macs": cost.macs, "memory": cost.memory, **known}


def in_the_way(space: SearchSpace) -> str:
    """The reasons of the pins that hold most of what remains at the least size of every group, as a sentence. Each
    parameter counts once, for the pin of its longest dimension."""
    keep = np.append(space.least_keep(), True)
    left = {shape.name: list(shape.shape) for shape in space.shapes}
    for place in space.dims:
        left[place.tensor][place.dim] = int(keep[place.units].all(axis=1).sum())
    longest: dict[str, Pin] = {}
    for pin in space.pins:
        if pin.parameter not in longest or pin.count > longest[pin.parameter].count:
            longest[pin.parameter] = pin
    held: defaultdict[str, int] = defaultdict(int)
    for pin in longest.values():
        where = f", {pin.location}" if pin.location else ""
        held[f"{pin.reason} ({pin.parameter}{where})"] += math.prod(left[pin.parameter])
    dense = space.cost().params
    worst = [item for item in sorted(held.items(), key=lambda item: -item[1])[:3] if item[1] > _LITTLE * dense]
    if not worst:
        return "Nothing but the least size of every group is in the way."
    return "Most is pinned by: " + "; ".join(f"{reason}, {count:,} parameters" for reason, count in worst) + "."
