"""Which units stay: the most saliency under limits on the cost.

What is kept is worth, summed over the groups g of coupled channels,

    sum_g  a_g log(V_g),    V_g = the saliency kept in g,    a_g = (cost of g in the dense network) ^ (1 - GAMMA).

The logarithm makes groups of different scale comparable, and makes a group that has lost much give the rest ever more
reluctantly: no layer collapses however expensive it is. Units leave in the order of worth lost per cost saved. With
units of equal saliency GAMMA = 0 takes the same share of every group, GAMMA = 1 makes all groups cost the same; between
them expensive groups give more than cheap ones, by less than their cost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Among, group_of

GAMMA = 0.25

_ROUNDS = 8  # re-pricings on the way to the limit: what a unit costs depends on what its neighbours have lost
_SWAPS = 16
_TIGHT = 0.01
_TINY = 1e-300


@dataclass(frozen=True, slots=True)
class Steps:
    """The sizes a group may have: multiples of ``round_to`` that are at least ``min_units``, or its full size."""

    round_to: int = 1
    min_units: int = 1

    def allows(self, full: int, kept: IntArray) -> BoolArray:
        """Whether a group of ``full`` units may keep ``kept``."""
        fits: BoolArray = ((kept % self.round_to == 0) & (kept >= max(1, self.min_units))) | (kept == full)
        return fits


@dataclass(frozen=True, slots=True, eq=False)
class _Levels:
    """By which steps groups can shrink.

    A block is a group, or several that are tied; it stands at level j after j of its ties' steps. Levels it may not
    stand at are jumped over. The c-th unit that leaves group g does so on the way to level
    ``reached[first of g + c - 1]``, from the level ``left`` at the same place; ``reached`` is -1 if it never leaves.
    """

    block: IntArray  # [groups]
    step: IntArray  # [groups], units per level
    reached: IntArray  # [num_units]
    left: IntArray  # [num_units]

    @classmethod
    def of(cls, space: SearchSpace, steps: Steps) -> _Levels:
        groups = len(space.groups)
        tied = [(tie.groups, tie.steps, tie.most) for tie in space.ties]
        taken = {group for members, _, _ in tied for group in members}
        blocks = tied + [((g,), (1,), space.groups[g].units - 1) for g in range(groups) if g not in taken]
        block, step = np.empty(groups, np.int64), np.empty(groups, np.int64)
        reached, left = np.full(space.num_units, -1), np.full(space.num_units, -1)
        for number, (members, per_level, most) in enumerate(blocks):
            levels = np.arange(most + 1)
            may = np.ones(most + 1, dtype=bool)
            for member, per in zip(members, per_level, strict=True):
                may &= steps.allows(space.groups[member].units, space.groups[member].units - per * levels)
            allowed = np.flatnonzero(may)  # level 0 always
            for member, per in zip(members, per_level, strict=True):
                block[member], step[member] = number, per
                leaving = np.arange(1, per * allowed[-1] + 1)
                place = np.searchsorted(allowed, -(-leaving // per))
                first = space.groups[member].first
                reached[first : first + len(leaving)] = allowed[place]
                left[first : first + len(leaving)] = allowed[place - 1]
        return cls(block, step, reached, left)


def costs(space: SearchSpace, keep: BoolArray, measures: Collection[str]) -> dict[str, float]:
    """The cost of ``keep`` in each of ``measures``: fields of `Cost`, or ``units``."""
    alive = space.cost_model.counts(keep.astype(np.float64))
    return {
        measure: float(keep.sum()) if measure == "units" else float(round(space.cost_model.terms(measure).total(alive)))
        for measure in measures
    }


def prices(space: SearchSpace, keep: BoolArray, measures: Collection[str]) -> dict[str, FloatArray]:
    """What each unit alone costs beside ``keep``, [num_units] per measure; never more than its return would cost."""
    gates = keep.astype(np.float64)
    return {
        measure: np.ones(space.num_units) if measure == "units" else space.cost_model.price(gates, measure)
        for measure in measures
    }


def select(
    space: SearchSpace,
    saliency: FloatArray,
    limits: Mapping[str, float],
    removed: BoolArray | None = None,
    *,
    steps: Steps = Steps(),
    compare: Among = "group",
) -> BoolArray:
    """The units to keep, [num_units], so that every measure in ``limits`` is met from below.

    ``saliency`` [num_units] is not negative. Units in ``removed`` stay removed. ``compare="space"``: what is kept is
    worth the sum of its saliency, for saliencies that are comparable across groups as they are. Where the limits
    cannot be met every group ends at its least size: the caller compares.
    """
    chooser = _Chooser(space, saliency, dict(limits), steps, compare)
    start = np.ones(space.num_units, dtype=bool) if removed is None else ~removed
    return chooser.tighten(chooser.refill(chooser.shrink(start), start), start)


@dataclass(frozen=True, slots=True, eq=False)
class _Queue:
    """Units in the order in which they leave (or return): step i moves ``units[start[i] : start[i + 1]]``."""

    units: IntArray
    start: IntArray  # [steps + 1]

    def first(self, steps: int) -> IntArray:
        """The units of the first ``steps`` steps."""
        return self.units[: self.start[steps]]

    def only(self, which: BoolArray) -> _Queue:
        """The steps with ``which`` true."""
        sizes = np.diff(self.start)
        return _Queue(self.units[np.repeat(which, sizes)], np.append(0, np.cumsum(sizes[which])))

    def sums(self, values: FloatArray) -> FloatArray:
        """Sums of ``values`` [num_units] over each step."""
        return _sums(values[self.units], self.start)

    def __len__(self) -> int:
        return len(self.start) - 1


class _Chooser:
    def __init__(
        self, space: SearchSpace, saliency: FloatArray, limits: dict[str, float], steps: Steps, compare: Among
    ) -> None:
        self.space, self.saliency, self.limits, self.compare = space, saliency, limits, compare
        self.group, self.groups = group_of(space), len(space.groups)
        self.levels = _Levels.of(space, steps)
        self.block = self.levels.block[self.group]
        self.first = np.array([group.first for group in space.groups], np.int64)
        self.size = np.array([group.units for group in space.groups], np.int64)
        everything = np.ones(space.num_units, dtype=bool)
        self.dense_price = prices(space, everything, limits)
        self.dense = costs(space, everything, limits)

    def shrink(self, keep: BoolArray, last: BoolArray | None = None) -> BoolArray:
        """Remove what is worth least, re-pricing a few times on the way, until every limit is met.

        The units ``last`` go only when nothing else is left.
        """
        for rounds_left in range(_ROUNDS, 0, -1):
            excess = self._excess(keep)
            if not excess:
                break
            price = prices(self.space, keep, excess)
            queue = self._leaving(keep, excess, price, last)
            count = self._steps_saving(queue, price, {m: e / rounds_left for m, e in excess.items()})
            if rounds_left == 1:
                count = self._fewest(queue, keep, count)
            keep = keep.copy()
            keep[queue.first(count)] = False
        return keep

    def refill(self, keep: BoolArray, start: BoolArray) -> BoolArray:
        """Take back the best of the units in ``start`` but not in ``keep`` that still fit under the limits."""
        full = np.zeros(self.space.num_units, dtype=bool)  # units of blocks that cannot grow any more
        while True:
            slack = self._slack(keep)
            if min(slack.values()) < 0:
                return keep
            price = prices(self.space, keep, self.limits)
            queue = self._returning(keep, start & ~full, price)
            queue = queue.only(self._fitting(queue, price, slack))
            if not len(queue):
                return keep
            count = self._most(queue, keep, price, slack)
            keep = keep.copy()
            keep[queue.first(count)] = True
            if count == 0:
                full |= self.block == self.block[queue.units[0]]

    def tighten(self, keep: BoolArray, start: BoolArray) -> BoolArray:
        """Where steps are coarse (small networks): take back one large step and give smaller ones for it, if that
        leaves less unused."""
        unused = self._unused(keep)
        for _ in range(_SWAPS):
            if not _TIGHT < unused < 1:
                break
            queue = self._returning(keep, start, prices(self.space, keep, self.limits))
            for step in range(min(len(queue), _SWAPS)):
                back = queue.units[queue.start[step] : queue.start[step + 1]]
                trial = keep.copy()
                trial[back] = True
                trial = self.refill(self.shrink(trial, self.block == self.block[back[0]]), start)
                if 0 <= self._unused(trial) < unused:
                    keep, unused = trial, self._unused(trial)
                    break
            else:
                break
        return keep

    def _excess(self, keep: BoolArray) -> dict[str, float]:
        """By how much the limits that are not met are exceeded."""
        return {measure: -room for measure, room in self._slack(keep).items() if room < 0}

    def _slack(self, keep: BoolArray) -> dict[str, float]:
        now = costs(self.space, keep, self.limits)
        return {measure: limit - now[measure] for measure, limit in self.limits.items()}

    def _unused(self, keep: BoolArray) -> float:
        """The share of the tightest limit that is left (negative if one is not met)."""
        return min(room / max(self.limits[measure], 1.0) for measure, room in self._slack(keep).items())

    def _mixed(self, price: Mapping[str, FloatArray], weight: Mapping[str, float]) -> FloatArray:
        """One price from those of several measures, as a weighted sum of shares of the dense cost, [num_units]."""
        mixed = np.zeros(self.space.num_units)
        for measure, factor in weight.items():
            mixed += factor / self.dense[measure] * price[measure] / self.dense[measure]
        floor = 1e-9 * float(mixed.max(initial=_TINY))
        return mixed.clip(min=floor)

    def _worth(self, before: FloatArray, after: FloatArray, units: IntArray, weight: Mapping[str, float]) -> FloatArray:
        """What it is worth to have each of ``units``, whose group keeps ``before`` with it and ``after`` without."""
        if self.compare == "space":
            return self.saliency[units]
        cost = np.bincount(self.group, weights=self._mixed(self.dense_price, weight), minlength=self.groups)
        gain = np.log(np.maximum(before, _TINY)) - np.log(np.maximum(after, _TINY))
        weight_of_group = np.power(cost, 1 - GAMMA, dtype=np.float64)
        return np.asarray(weight_of_group[self.group[units]] * gain, np.float64)

    def _leaving(
        self, keep: BoolArray, weight: Mapping[str, float], price: Mapping[str, FloatArray], last: BoolArray | None
    ) -> _Queue:
        """The steps by which the groups of ``keep`` can shrink, those first that lose least per cost saved."""
        mixed = self._mixed(price, weight)
        units, group, place, alive = self._sorted(keep, self.saliency / mixed)
        kept = self._cumulative(units[::-1])[::-1]  # by the group, when this unit is the next to leave
        worth = self._worth(kept, kept - self.saliency[units], units, weight)
        if last is not None:
            worth = np.where(last[units], 1 / _TINY, worth)
        level = self.levels.reached[self.first[group] + (self.size - alive)[group] + place]
        may = level >= 0
        return self._queue(units[may], level[may], worth[may], mixed)

    def _returning(self, keep: BoolArray, may: BoolArray, price: Mapping[str, FloatArray]) -> _Queue:
        """The next step by which each block can grow with units of ``may``, those first that give most per cost."""
        weight = self.dense
        mixed = self._mixed(price, weight)
        units, group, place, missing = self._sorted(may & ~keep, -self.saliency / mixed)
        gone = self.size - np.bincount(self.group[keep], minlength=self.groups)
        left = self.levels.left[np.minimum(self.first + np.maximum(gone, 1), self.space.num_units) - 1]
        needed = gone - np.where(gone > 0, left, 0) * self.levels.step
        blocked = self.levels.block[missing < needed]  # some of its last step left for good
        held = np.bincount(self.group, weights=np.where(keep, self.saliency, 0.0), minlength=self.groups)[group]
        after = held + self._cumulative(units)
        worth = self._worth(after, after - self.saliency[units], units, weight)
        near = (place < needed[group]) & ~np.isin(self.block[units], blocked)
        return self._queue(units[near], np.zeros(int(near.sum()), np.int64), -worth[near], mixed)

    def _sorted(self, which: BoolArray, key: FloatArray) -> tuple[IntArray, IntArray, IntArray, IntArray]:
        """The units of ``which`` by group and then by ``key``; their groups, their places there; the groups' sizes."""
        units = np.flatnonzero(which)
        units = units[np.lexsort((key[units], self.group[units]))]
        group = self.group[units]
        size = np.bincount(group, minlength=self.groups)
        return units, group, np.arange(len(units)) - (np.cumsum(size) - size)[group], size

    def _cumulative(self, units: IntArray) -> FloatArray:
        """The saliency of each unit and those before it in its group; units of a group are neighbours."""
        if not len(units):
            return np.empty(0)
        total = np.cumsum(self.saliency[units])
        first = np.append(True, np.diff(self.group[units]) != 0)
        before = (total - self.saliency[units])[first]
        return np.asarray(total - before[np.cumsum(first) - 1], np.float64)

    def _queue(self, units: IntArray, step: IntArray, worth: FloatArray, price: FloatArray) -> _Queue:
        """Units as steps of their blocks, in the order of worth per price; the steps of a block stay in order."""
        if not len(units):
            return _Queue(units, np.zeros(1, np.int64))
        order = np.lexsort((step, self.block[units]))
        units, step, worth, block = units[order], step[order], worth[order], self.block[units[order]]
        new = np.append(True, (np.diff(block) != 0) | (np.diff(step) != 0))
        start = np.append(np.flatnonzero(new), len(units))
        sizes = np.diff(start)
        key = _sums(worth, start) / _sums(price[units], start)
        rank = np.empty(len(key), np.int64)
        rank[np.argsort(key, kind="stable")] = np.arange(len(key))
        lift = block[start[:-1]] * len(key)
        rank = np.maximum.accumulate(rank + lift) - lift
        order = np.argsort(rank, kind="stable")
        ends = np.cumsum(sizes[order])
        within = np.arange(len(units)) - np.repeat(ends - sizes[order], sizes[order])
        return _Queue(units[np.repeat(start[:-1][order], sizes[order]) + within], np.append(0, ends))

    def _fitting(self, queue: _Queue, price: Mapping[str, FloatArray], slack: Mapping[str, float]) -> BoolArray:
        """Which steps may fit into ``slack`` if taken alone."""
        fits = np.ones(len(queue), dtype=bool)
        for measure, room in slack.items():
            fits &= queue.sums(price[measure]) <= room
        return fits

    def _steps_saving(self, queue: _Queue, price: Mapping[str, FloatArray], amounts: Mapping[str, float]) -> int:
        """How many steps save ``amounts`` by today's prices, which promise too much: it takes no fewer."""
        needed = [
            int(np.searchsorted(np.cumsum(queue.sums(price[measure])), amount)) + 1
            for measure, amount in amounts.items()
        ]
        return min(max(needed), len(queue))

    def _fewest(self, queue: _Queue, keep: BoolArray, low: int) -> int:
        """The fewest steps, at least ``low``, after which every limit is met (all, if none does)."""
        high, stride = low, 1
        while high < len(queue) and not self._met(keep, queue.first(high), False):
            low, high, stride = high + 1, min(high + stride, len(queue)), 2 * stride
        while low < high:
            middle = (low + high) // 2
            if self._met(keep, queue.first(middle), False):
                high = middle
            else:
                low = middle + 1
        return low

    def _most(self, queue: _Queue, keep: BoolArray, price: Mapping[str, FloatArray], slack: Mapping[str, float]) -> int:
        """The most steps that can return with every limit still met."""
        low, high = 0, len(queue)
        for measure, room in slack.items():  # prices are never above what a return costs, so this bound is safe
            spent = np.cumsum(queue.sums(price[measure]))
            high = min(high, int(np.searchsorted(spent, room, side="right")))
        while low < high:
            middle = (low + high + 1) // 2
            if self._met(keep, queue.first(middle), True):
                low = middle
            else:
                high = middle - 1
        return low

    def _met(self, keep: BoolArray, units: IntArray, value: bool) -> bool:
        """Whether every limit is met by ``keep`` with ``units`` set to ``value``."""
        trial = keep.copy()
        trial[units] = value
        return not self._excess(trial)


def _sums(values: FloatArray, start: IntArray) -> FloatArray:
    """Sums of consecutive pieces, none of them empty."""
    return np.add.reduceat(values, start[:-1]) if len(values) else np.empty(0)
