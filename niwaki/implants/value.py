"""Keep, implant or remove each unit: the choice that loses least per saved cost, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import final

import numpy as np

from niwaki.core.cost import Terms
from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.space import BoolArray
from niwaki.implants.layers import ImplantLayers
from niwaki.selection.objective import costs

_KEPT, _IMPLANT, _REMOVED = range(3)
_ROUNDS = 60  # re-pricings: the cost of a unit depends on its neighbours
_GIVEN_BACK = 200


@final
class ByValue:
    """Steps from the dense network towards ``limits``, the one of the least loss per saved cost first.

    A step implants or removes a unit, or removes an implant. ``saliency`` [num_units] is the loss without a unit. The
    best ``least`` units of every group stay as they are, and so does the number of units in groups that are tied.
    """

    def __init__(
        self, layers: ImplantLayers, saliency: FloatArray, limits: Mapping[str, float], least: int = 1
    ) -> None:
        space = layers.space
        self._layers, self._limits, self._space = layers, limits, space
        self._lost = np.stack([np.zeros_like(saliency), saliency * layers.lost_share(), saliency])  # by state
        self._fixed = np.ones(space.num_units, dtype=bool)  # neither implanted nor removed
        self._tied = np.zeros(space.num_units, dtype=bool)  # not removed
        for group in space.width_groups:
            best = np.argsort(-saliency[group.numbers], kind="stable")[: max(least, 1)]
            self._fixed[group.numbers] = False
            self._fixed[group.first + best] = True
        for tie in space.ties:
            for number in tie.groups:
                self._tied[space.groups[number].numbers] = True
        self._dense = costs(space.cost_model, np.ones(space.num_units, dtype=bool), limits)

    def chosen(self) -> tuple[BoolArray, BoolArray]:
        """The units [num_units] that stay, and those among them that are implants."""
        state = np.zeros(self._space.num_units, np.int64)
        taken: list[tuple[int, int]] = []  # unit, and its state before
        for _ in range(_ROUNDS):
            excess = self._excess(state)
            worst = max(excess.values(), default=0.0)
            if worst <= 0:
                break
            units, to, ratio, saved = self._steps(state, excess)
            order = np.argsort(ratio, kind="stable")
            if not len(order):
                break
            enough = int(np.searchsorted(np.cumsum(saved[order]), worst / 2)) + 1
            for step in order[:enough].tolist():
                taken.append((int(units[step]), int(state[units[step]])))
                state[units[step]] = to[step]
        for unit, before in taken[::-1][:_GIVEN_BACK]:
            after, state[unit] = state[unit], before
            if max(self._excess(state).values(), default=0.0) > 0:
                state[unit] = after
        return state != _REMOVED, state == _IMPLANT

    def _excess(self, state: IntArray) -> dict[str, float]:
        """How far the cost is above each limit, as a fraction of the dense cost."""
        keep, slim = state != _REMOVED, state == _IMPLANT
        found = costs(self._space.cost_model, keep, self._limits)
        return {
            name: (found[name] - self._layers.saved(keep, slim, name) - limit) / self._dense[name]
            for name, limit in self._limits.items()
        }

    def _steps(self, state: IntArray, excess: Mapping[str, float]) -> tuple[IntArray, IntArray, FloatArray, FloatArray]:
        """The units that can take a step, to which state, and for each the loss per saved cost and the saving."""
        keep, slim = state != _REMOVED, state == _IMPLANT
        implanting, removing = np.zeros((2, len(state)))
        for name, over in excess.items():
            if over > 0:
                implanting += self._layers.prices(keep, name) / self._dense[name]
                removing += self._removing(keep, slim, name) / self._dense[name]
        lost = self._lost
        here = lost[state, np.arange(len(state))]
        can_implant = (state == _KEPT) & ~self._fixed & self._layers.can & (implanting > 0)
        can_remove = keep & ~self._fixed & ~self._tied & (removing > 0)
        ways = np.full((2, len(state)), np.inf)
        ways[0, can_implant] = ((lost[_IMPLANT] - here) / np.where(can_implant, implanting, 1))[can_implant]
        ways[1, can_remove] = ((lost[_REMOVED] - here) / np.where(can_remove, removing, 1))[can_remove]
        best = ways.argmin(axis=0)
        units = np.flatnonzero(np.isfinite(ways.min(axis=0)))
        to = np.where(best[units] == 0, _IMPLANT, _REMOVED)
        return units, to, ways.min(axis=0)[units], np.where(best == 0, implanting, removing)[units]

    def _removing(self, keep: BoolArray, slim: BoolArray, measure: str) -> FloatArray:
        """What removing each unit would save, [num_units], where some are implants."""
        model, layers = self._space.cost_model, self._layers
        own = np.zeros(len(keep) + 1)
        constant = model.macs.constant.copy()
        for one in layers.row_costs(keep, slim, measure):
            number, implants = max(int(one.alive.sum()), 1), max(int(one.slim.sum()), 1)
            each = np.where(one.slim, one.saved / implants, 0.0)
            if measure == "macs":
                share = one.saved / (number * one.row) if one.row else 0.0
                constant[list(model.macs_of[one.layer.weight])] *= 1 - share
                each = np.where(one.alive, each - one.saved / number, 0.0)  # from the mean output of the layer
            for column in one.layer.units.T:
                np.subtract.at(own, column, each)
        model = replace(model, macs=Terms(constant, model.macs.axes))
        return np.asarray(model.price(keep.astype(np.float64), measure) + own[:-1], np.float64)
