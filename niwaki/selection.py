"""Which units stay: the most saliency under limits on the cost.

The saliency of a group counts by its *share*: what is maximised is the sum over groups of log(kept saliency), so that a
group that has lost much already gives the rest more reluctantly, and groups of different scale are comparable. Units
leave in the order of (share of saliency lost) / (cost saved), with the cost of a group under a square root:

    key_u = (s_u / mean of its group) / (price_u / mean price of its group) / sqrt(cost held by its group)

Without the root the most expensive layers would be emptied first, without the cost the cheapest would be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Among, group_of

_ROUNDS = 8
_SWAPS = 16
_TIGHT = 0.01


@dataclass(frozen=True, slots=True)
class Steps:
    """The sizes a group may have: multiples of ``round_to`` that are at least ``min_units``, or its full size."""

    round_to: int = 1
    min_units: int = 1

    def least(self, space: SearchSpace) -> IntArray:
        """The least size of each group, [groups]."""
        full = np.array([group.units for group in space.groups], np.int64)
        return np.minimum(full, -(-self.min_units // self.round_to) * self.round_to)


def costs(space: SearchSpace, keep: BoolArray, measures: Collection[str]) -> dict[str, float]:
    """The cost of ``keep`` in each of ``measures`` (``units`` among them)."""
    cost = space.cost_of(keep)
    every = {"macs": cost.macs, "params": cost.params, "memory": cost.memory, "units": int(keep.sum())}
    return {measure: float(every[measure]) for measure in measures}


def prices(space: SearchSpace, keep: BoolArray, measures: Collection[str]) -> dict[str, FloatArray]:
    """What each unit alone costs beside ``keep``, [num_units] per measure; never more than removing it saves."""
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

    ``saliency`` [num_units] is not negative. Units in ``removed`` stay removed. Where the limits cannot be met every
    group ends at its least size: the caller compares.
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
        return self.units[: self.start[steps]]

    def only(self, which: BoolArray) -> _Queue:
        sizes = np.diff(self.start)
        return _Queue(self.units[np.repeat(which, sizes)], np.append(0, np.cumsum(sizes[which])))

    def __len__(self) -> int:
        return len(self.start) - 1


class _Chooser:
    def __init__(
        self, space: SearchSpace, saliency: FloatArray, limits: dict[str, float], steps: Steps, compare: Among
    ) -> None:
        self.space, self.saliency, self.limits, self.compare = space, saliency, limits, compare
        self.round_to, self.least, self.group = steps.round_to, steps.least(space), group_of(space)

    def shrink(self, keep: BoolArray, last: BoolArray | None = None) -> BoolArray:
        """Remove what matters least, re-pricing a few times on the way, until every limit is met.

        The units ``last`` go only if nothing else is left.
        """
        for rounds_left in range(_ROUNDS, 0, -1):
            now = costs(self.space, keep, self.limits)
            excess = {m: now[m] - limit for m, limit in self.limits.items() if now[m] > limit}
            if not excess:
                break
            price = prices(self.space, keep, excess)
            key = self._key(keep, excess, now, price)
            if last is not None:
                key[last] = np.inf
            queue = self._leaving(keep, key)
            if rounds_left > 1:
                count = self._steps_saving(queue, price, {m: e / rounds_left for m, e in excess.items()})
            else:
                count = self._fewest(queue, keep)
            keep = keep.copy()
            keep[queue.first(count)] = False
        return keep

    def refill(self, keep: BoolArray, start: BoolArray) -> BoolArray:
        """Take back the best of the units in ``start`` but not in ``keep`` that still fit under the limits."""
        full = np.zeros(len(self.least), dtype=bool)  # groups that cannot grow any more
        while True:
            now = costs(self.space, keep, self.limits)
            slack = {m: limit - now[m] for m, limit in self.limits.items()}
            if min(slack.values()) < 0:
                return keep
            price = prices(self.space, keep, self.limits)
            queue = self._returning(keep, start & ~full[self.group], self._key(start, now, now, price))
            queue = queue.only(self._fitting(queue, price, slack))
            if not len(queue):
                return keep
            count = self._most(queue, keep, price, slack)
            keep = keep.copy()
            keep[queue.first(count)] = True
            if count == 0:
                full[self.group[queue.first(1)]] = True

    def tighten(self, keep: BoolArray, start: BoolArray) -> BoolArray:
        """Where steps are coarse (small networks): take back one large step and give smaller ones for it, if that
        leaves less unused."""
        unused = self._unused(keep)
        for _ in range(_SWAPS):
            if not _TIGHT < unused < 1:
                break
            now = costs(self.space, keep, self.limits)
            queue = self._returning(keep, start, self._key(start, now, now, prices(self.space, keep, self.limits)))
            for step in range(min(len(queue), _SWAPS)):
                back = queue.units[queue.start[step] : queue.start[step + 1]]
                trial = keep.copy()
                trial[back] = True
                trial = self.refill(self.shrink(trial, self.group == self.group[back[0]]), start)
                if 0 <= self._unused(trial) < unused:
                    keep, unused = trial, self._unused(trial)
                    break
            else:
                break
        return keep

    def _unused(self, keep: BoolArray) -> float:
        """The share of the tightest limit that is left (negative if one is not met)."""
        now = costs(self.space, keep, self.limits)
        return min(1 - now[measure] / limit if limit else -now[measure] for measure, limit in self.limits.items())

    def _key(
        self, among: BoolArray, weight: Mapping[str, float], now: Mapping[str, float], price: Mapping[str, FloatArray]
    ) -> FloatArray:
        """What a unit gives per cost, [num_units]; several measures weigh by how far each is from its limit."""
        mixed = np.zeros(self.space.num_units)
        for measure in weight:
            mixed += weight[measure] / now[measure] * price[measure] / now[measure]
        mixed = np.maximum(mixed, 1e-12 * max(float(mixed.max(initial=0.0)), 1e-300))
        if self.compare == "space":
            return self.saliency / mixed
        groups = len(self.space.groups)
        held = np.bincount(self.group, weights=np.where(among, self.saliency, 0.0), minlength=groups)
        cost = np.bincount(self.group, weights=np.where(among, mixed, 0.0), minlength=groups)
        count = np.bincount(self.group, weights=among, minlength=groups)
        share = (
            np.where(held[self.group] > 0, self.saliency, 1.0)
            / np.where(held > 0, held, np.maximum(count, 1))[self.group]
        )
        return share * np.sqrt(cost)[self.group] / mixed

    def _leaving(self, keep: BoolArray, key: FloatArray) -> _Queue:
        """The steps by which the groups of ``keep`` can shrink, the least valuable first."""
        units = np.flatnonzero(keep)
        units = units[np.lexsort((key[units], self.group[units]))]
        group = self.group[units]
        alive = np.bincount(group, minlength=len(self.least))
        place = np.arange(len(units)) - (np.cumsum(alive) - alive)[group]
        left = (alive[group] - place - 1) // self.round_to * self.round_to  # the size of the group after this step
        may = left >= self.least[group]
        return self._queue(units[may], group[may], left[may], key)

    def _returning(self, keep: BoolArray, may: BoolArray, key: FloatArray) -> _Queue:
        """The next step by which each group can grow with units of ``may``, the most valuable first."""
        units = np.flatnonzero(may & ~keep)
        units = units[np.lexsort((-key[units], self.group[units]))]
        group = self.group[units]
        missing = np.bincount(group, minlength=len(self.least))
        place = np.arange(len(units)) - (np.cumsum(missing) - missing)[group]
        kept = np.bincount(self.group[keep], minlength=len(self.least))
        grown = np.minimum((kept // self.round_to + 1) * self.round_to, kept + missing)
        near = kept[group] + place < grown[group]
        return self._queue(units[near], group[near], np.zeros(int(near.sum()), np.int64), -key)

    def _fitting(self, queue: _Queue, price: Mapping[str, FloatArray], slack: Mapping[str, float]) -> BoolArray:
        """Which steps may fit into ``slack`` if taken alone: prices are never above what a return costs."""
        fits = np.ones(len(queue), dtype=bool)
        for measure, room in slack.items():
            fits &= _sums(price[measure][queue.units], queue.start) <= room
        return fits

    def _queue(self, units: IntArray, group: IntArray, step: IntArray, key: FloatArray) -> _Queue:
        """Units sorted by group and step, as steps in the order of their mean key; a group's steps stay in order."""
        if not len(units):
            return _Queue(units, np.zeros(1, np.int64))
        new = np.append(True, (np.diff(group) != 0) | (np.diff(step) != 0))
        start = np.append(np.flatnonzero(new), len(units))
        sizes = np.diff(start)
        mean = _sums(key[units], start) / sizes
        rank = np.empty(len(mean), np.int64)
        rank[np.argsort(mean, kind="stable")] = np.arange(len(mean))
        lift = group[start[:-1]] * len(mean)
        rank = np.maximum.accumulate(rank + lift) - lift
        order = np.argsort(rank, kind="stable")
        first = np.repeat(start[:-1][order], sizes[order])
        ends = np.cumsum(sizes[order])
        within = np.arange(len(units)) - np.repeat(ends - sizes[order], sizes[order])
        return _Queue(units[first + within], np.append(0, ends))

    def _steps_saving(self, queue: _Queue, price: Mapping[str, FloatArray], amounts: Mapping[str, float]) -> int:
        """How many steps save ``amounts``, by today's prices."""
        needed = [
            int(np.searchsorted(np.cumsum(_sums(price[measure][queue.units], queue.start)), amount)) + 1
            for measure, amount in amounts.items()
        ]
        return min(max(needed), len(queue))

    def _fewest(self, queue: _Queue, keep: BoolArray) -> int:
        """The fewest steps after which every limit is met (all, if none does)."""
        low, high = 1, len(queue)
        while low < high:
            middle = (low + high) // 2
            trial = keep.copy()
            trial[queue.first(middle)] = False
            if self._met(trial):
                high = middle
            else:
                low = middle + 1
        return min(low, len(queue))

    def _most(self, queue: _Queue, keep: BoolArray, price: Mapping[str, FloatArray], slack: Mapping[str, float]) -> int:
        """The most steps that can return with every limit still met."""
        low, high = 0, len(queue)
        for measure, room in slack.items():  # prices are never above what a return costs, so this bound is safe
            spent = np.cumsum(_sums(price[measure][queue.units], queue.start))
            high = min(high, int(np.searchsorted(spent, room, side="right")))
        while low < high:
            middle = (low + high + 1) // 2
            trial = keep.copy()
            trial[queue.first(middle)] = True
            if self._met(trial):
                low = middle
            else:
                high = middle - 1
        return low

    def _met(self, keep: BoolArray) -> bool:
        return all(cost <= self.limits[m] for m, cost in costs(self.space, keep, self.limits).items())


def _sums(values: FloatArray, start: IntArray) -> FloatArray:
    """Sums of consecutive pieces, none of them empty."""
    return np.add.reduceat(values, start[:-1]) if len(values) else np.empty(0)
