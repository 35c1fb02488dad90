"""Predict the latency of networks that were not run, from operator times of some that were.

An operator takes t(w) = t(1) (1 - b (1 - w)) nanoseconds where w of its work is left (see `OperatorWork`). The
slope b, in [0, 1], comes of least squares over the networks that were timed, with what the network as a whole gains
for its prior: an operator that few units left says little, and all of its time goes in proportion before any is cut.
What a unit costs then does not depend on its MACs alone: convolutions of little arithmetic on large images, norms, and
weights that have to come from memory count by the time they take here, in widths like those that are chosen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.performance.operators import Timed
from niwaki.selection.levels import leaving
from niwaki.selection.steps import Widths

_KEPT = (0.75, 0.5, 0.25)  # of the units of every group, in the networks that are timed
_PRIOR = 0.02  # weighs like a network that has lost a seventh of the operator's work


class Unpredictable(Exception):
    """The reason why operator times cannot predict the latency, as the second half of a sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class OperatorTimes:
    """One network that was timed beside the dense one: ``left`` [N] of the work of each operator, the ``nanoseconds``
    [N] it takes, and those of the ``dense`` network; what is not in `Work`, views mostly, takes ``rest`` there."""

    left: FloatArray
    nanoseconds: FloatArray
    dense: FloatArray
    rest: float


def narrowed(space: SearchSpace) -> Iterator[BoolArray]:
    """The units [num_units] that are kept in the networks from whose times all others are predicted."""
    number = np.zeros(space.num_units)
    for group in space.width_groups:
        number[group.numbers] = (np.arange(group.units) + 0.5) / group.units
    for kept in _KEPT:
        yield ~leaving(space, number > kept, Widths())


def reading(space: SearchSpace, keep: BoolArray, small: Timed, dense: Timed) -> OperatorTimes:
    """What the times in the network with the units ``keep`` [num_units] and in the ``dense`` one tell.

    Raises:
        Unpredictable: these are not the operators that the search space was made from.
    """
    model = space.cost_model
    if model.work is None:
        raise Unpredictable("the search space was made without a run")
    known, found = frozenset(model.work.names), []
    for names, times in (small, dense):
        which = [name in known for name in names]
        ours = tuple(name for name, is_known in zip(names, which, strict=True) if is_known)
        if ours != model.work.names:
            first = next((i for i, (a, b) in enumerate(zip(ours, model.work.names, strict=False)) if a != b), None)
            raise Unpredictable(
                f"{len(ours)} operators ran where the search space was made from {len(model.work.names)}"
                + ("" if first is None else f", {ours[first]} in the place of {model.work.names[first]}")
            )
        nanoseconds = np.array(times, dtype=np.float64)
        found.append((nanoseconds[which], float(nanoseconds[np.logical_not(which)].sum())))
    everything = np.ones(space.num_units, dtype=bool)
    now, whole = (model.work.amounts(model.counts(units)) for units in (keep, everything))
    return OperatorTimes(np.where(whole > 0, now / np.maximum(whole, 1.0), 1.0), found[0][0], *found[1])


def priced(space: SearchSpace, readings: Sequence[OperatorTimes]) -> SearchSpace:
    """``space`` with a cost model that knows the latency, from one reading or more.

    >>> import niwaki, torch
    >>> space = niwaki.search_space(torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2)), torch.ones(1, 4))
    >>> names = ("aten.addmm.default", "aten.t.default") * 2
    >>> half = reading(space, np.arange(8) < 4, (names, (30, 1, 50, 1)), (names, (30, 1, 90, 1)))
    >>> model = priced(space, [half]).cost_model
    >>> [round(model.latency.total(model.counts(np.arange(8) < kept))) for kept in (8, 4, 2)]
    [122, 82, 62]
    """
    whole = np.maximum(np.median([one.dense for one in readings], axis=0), 1.0)
    gone = np.array([1 - one.left for one in readings])
    gain = np.array([1 - one.nanoseconds / np.maximum(one.dense, 1.0) for one in readings])
    told = float((gone**2 * whole).sum())
    prior = float(np.clip((gone * gain * whole).sum() / told, 0.0, 1.0)) if told > 0 else 1.0
    slope = np.clip(((gone * gain).sum(axis=0) + _PRIOR * prior) / ((gone**2).sum(axis=0) + _PRIOR), 0.0, 1.0)
    rest = float((whole * (1 - slope)).sum() + np.median([one.rest for one in readings]))
    return replace(space, cost_model=space.cost_model.timed(whole * slope, rest))


def predicted(space: SearchSpace, keep: BoolArray) -> float:
    """The latency of the units ``keep`` [num_units] as a share of the dense one, by a space that is `priced`."""
    model = space.cost_model
    assert model.latency is not None
    everything = np.ones(space.num_units, dtype=bool)
    now, dense = (model.latency.total(model.counts(units)) for units in (keep, everything))
    return now / dense
