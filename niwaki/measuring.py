"""Limits that only a measurement can tell to be met: networks are cut and run until one is just small enough."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from niwaki.budget import in_the_way, is_whole
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import BudgetError
from niwaki.graphs.entry import calls_of
from niwaki.graphs.program import Program
from niwaki.report.activations import peak_activations
from niwaki.report.latency import device_of, evaluating, interleaved
from niwaki.surgery.cut import cut

_ROUNDS = 14  # halvings of the interval of MACs
_SECONDS = 0.5  # of measuring, per network
_LEAST = 15

Readings = Mapping[str, Mapping[str, float]]  # of each measure: what the cut network costs, and the dense one


@dataclass(frozen=True, slots=True)
class Meter:
    """One limit: ``read(network)`` gives what the network costs and what the dense one does, measured alike. The limit
    is an amount, or a share of what the dense one costs if it is a float; ``gap`` is how much of it may be left."""

    limit: float | int
    gap: float
    unit: str
    read: Callable[[nn.Module], tuple[float, float]]

    def filled(self, kept: float, dense: float) -> float:
        """How much of the limit is used, 1 being all of it."""
        return kept / (self.limit if is_whole(self.limit) else self.limit * dense)


def meters(space: SearchSpace, limits: Mapping[str, float | int], example_inputs: Any) -> dict[str, Meter]:
    """What measures ``limits``.

    Raises:
        BudgetError: there are no example inputs, or the model cannot be measured.
    """
    wanted = " and ".join(limits)
    if example_inputs is None:
        raise BudgetError(
            f"To measure {wanted}, niwaki.choose must run the network: pass example_inputs, on the model's device."
        )
    model = space.model
    if isinstance(model, Program):
        raise BudgetError(
            f"{wanted} cannot be measured for the space of an exported program. Choose from the space of the model "
            "itself, or set a limit in macs, params, units or memory."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise BudgetError(f"The model is on the meta device, where it has no {wanted} to measure. Move it first.")
    args, kwargs = calls_of(model, example_inputs)[0]
    device = device_of([model])
    inputs = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]

    def latency(small: nn.Module) -> tuple[float, float]:
        runs = {"small": partial(small, *args, **kwargs), "dense": partial(model, *args, **kwargs)}
        with evaluating([small, model]):
            times = interleaved(runs, device, 2 * _SECONDS, _LEAST)
        return statistics.median(times["small"]), statistics.median(times["dense"])

    def activations(small: nn.Module) -> tuple[float, float]:
        left, dense = (peak_activations(one, partial(one, *args, **kwargs), inputs) for one in (small, model))
        return float(left), float(dense)

    known = {"latency": (0.05, "microseconds", latency), "activations": (0.01, "bytes", activations)}
    return {measure: Meter(limit, *known[measure]) for measure, limit in limits.items()}


def within(
    space: SearchSpace,
    wanted: Mapping[str, Meter],
    keep: BoolArray,
    limits: Mapping[str, float],
    selected: Callable[[Mapping[str, float]], BoolArray],
) -> tuple[BoolArray, Readings]:
    """The largest choice, by MACs, that every meter finds small enough, and what the meters read, as plain data.

    ``keep`` is the choice under ``limits`` alone, ``selected(limits)`` that under others. The MACs are halved into an
    interval, so what is measured has to grow with them by and large, and is taken as it comes where it does not.

    Raises:
        BudgetError: the smallest network of all is still too large.
    """
    dense = float(space.cost().macs)

    def under(macs: float) -> BoolArray:
        return selected({**limits, "macs": min(macs, limits.get("macs", dense))})

    used, told = _read(space, wanted, keep)
    if used <= 1:
        return keep, told
    high, failing = float(space.cost_of(keep).macs), keep
    best = under(0.0)
    used, told = _read(space, wanted, best)
    if used > 1:
        raise _unreachable(space, wanted, told)
    low = float(space.cost_of(best).macs)
    for _ in range(_ROUNDS):
        if _is_tight(wanted, told):
            break
        middle = (low + high) / 2
        trial = under(middle)
        if np.array_equal(trial, best):
            low = middle
        elif np.array_equal(trial, failing):
            high = middle
        else:
            used, now = _read(space, wanted, trial)
            if used <= 1:
                low, best, told = middle, trial, now
            else:
                high, failing = middle, trial
    return best, told


def _read(space: SearchSpace, wanted: Mapping[str, Meter], keep: BoolArray) -> tuple[float, Readings]:
    """How much of its limit the tightest measure uses, and all readings."""
    small = cut(space.model, space.plan(keep))
    readings = {measure: meter.read(small) for measure, meter in wanted.items()}
    told = {measure: {"kept": kept, "dense": dense} for measure, (kept, dense) in readings.items()}
    return max(wanted[measure].filled(*reading) for measure, reading in readings.items()), told


def _is_tight(wanted: Mapping[str, Meter], told: Readings) -> bool:
    return any(meter.filled(**told[measure]) >= 1 - meter.gap for measure, meter in wanted.items())


def _unreachable(space: SearchSpace, wanted: Mapping[str, Meter], told: Readings) -> BudgetError:
    measure = max(wanted, key=lambda name: wanted[name].filled(**told[name]))
    meter, reading = wanted[measure], told[measure]
    limit = meter.limit if is_whole(meter.limit) else meter.limit * reading["dense"]
    return BudgetError(
        f"The budget {measure} <= {limit:,.0f} {meter.unit} ({limit / reading['dense']:.1%} of "
        f"{reading['dense']:,.0f}) cannot be met: with every group at its least size {reading['kept']:,.0f} "
        f"({reading['kept'] / reading['dense']:.1%}) were measured. {in_the_way(space)} Ask for more {measure}, or "
        "remove these reasons."
    )
