"""Choose structures to erase and units to remove under one budget: what is inside of a structure is priced once."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice
from typing import Final

import numpy as np

from niwaki.core.cost import CostModel
from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.dying import homes
from niwaki.core.isomorphic import group_of
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.core.structures import Erasures
from niwaki.criteria.normalise import Compare, peers_of
from niwaki.selection.greedy import widths
from niwaki.selection.objective import costs, mixed, prices
from niwaki.selection.request import SelectionRequest
from niwaki.selection.structures import erasable

_RATES = 32  # multipliers that the sweep looks at
_MOST_FILLS = 24  # sets of structures whose widths are worked out; where the sweep finds more, some of each size
_CHANGES = 16  # structures that are erased or returned at last, to see whether more is kept then
_MOST_LOOKS = 96  # sets in all
_ROUNDS = 3  # re-pricings: what a unit costs depends on what else is kept

Block = tuple[int, ...]


def erase_and_narrow(space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
    """The units to keep, [num_units], structures among them, so that every limit of the ``request`` is met.

    A choice is worth the sum of what it keeps, see `CommonScale`. For a sweep over the price of a cost, lambda, this is
    taken apart: a unit stays if it is worth more than lambda times what it costs, and then, from the innermost
    structures outwards, a structure stays if what is left of it is worth more than lambda times what that costs. Each
    set of structures that some lambda erases, if outputs still follow from inputs, is filled up to the limits by
    `select`, which sees to steps, ties and sizes; so are those that a greedy selection by worth per cost passes
    through. The one that keeps most wins, after a few structures have been exchanged for others.

    Units inside of what is erased cost nothing any more, and are reported as kept.
    """
    if space.erasures is None or not erasable(space, request.untrained):
        return widths(space, saliency, request)
    return _Sweep(space, space.erasures, saliency, request).best()


@dataclass(frozen=True, slots=True, eq=False)
class CommonScale:
    """What units and structures are worth on one scale: a choice is worth the sum of the units that it keeps, and of
    the structures that it does not erase, without those that are inside of one that it does.

    ``own`` [num_units]: of a unit, its worth; of a structure, what it is worth beside all that is inside of it.
    ``inside`` [structures, num_units]: what is inside of each structure, itself included, in the order of ``units``.
    """

    own: FloatArray
    inside: BoolArray

    @classmethod
    def of(
        cls,
        space: SearchSpace,
        units: Mapping[int, int],
        around: Mapping[int, Sequence[int]],
        start: BoolArray,
        saliency: FloatArray,
        price: FloatArray,
        compare: Compare,
        weight: FloatArray | None = None,
    ) -> CommonScale:
        """The values of the structures ``units`` (their units, by number) and of all other units.

        ``compare="space"``: saliencies are taken as they are, so that they add up; a structure is worth its own, or
        what the units inside of it are worth together if that is more. Otherwise units are compared in their group:
        one of average saliency is worth its ``price`` in the dense network. Structures are worth to one another what
        their saliencies are, and all that weights make are worth together what they cost; what is inside of a structure
        shares in its worth. ``weight`` [groups] multiplies the worth of units. ``around``: a structure and those around
        it, from inside out. ``start`` [num_units]: what is compared, since it is there.
        """
        home, numbers, own_units = homes(space, units), list(units), list(units.values())
        inside = np.array([np.isin(home, [one for one in units if number in around[one]]) for number in numbers])
        for place, number in enumerate(numbers):
            inside[place, [units[one] for one in units if number in around[one]]] = True
        own = np.where(np.isin(np.arange(space.num_units), own_units), 0.0, saliency)
        whole = saliency[own_units].astype(np.float64)
        if compare != "space":
            own = price * _over_mean(own, start, peers_of(space, compare))
            weighty = np.array([not space.structures[number].bare for number in numbers]) & start[own_units]
            density = _worth_per_cost(whole, price[own_units], weighty if weighty.any() else start[own_units])
            whole = price[own_units] * density
            for number, factor in zip(numbers, density.tolist(), strict=True):
                own[home == number] *= factor
        if weight is not None:
            own *= weight[group_of(space)]
        for number in sorted(units, key=lambda number: len(around[number]), reverse=True):
            place = numbers.index(number)
            total = float(own[inside[place]].sum())
            if compare != "space" and total > whole[place]:
                own[inside[place]] *= whole[place] / total
            own[units[number]] = max(0.0, float(whole[place]) - total)
        return cls(own, inside)


def _over_mean(values: FloatArray, start: BoolArray, peers: IntArray) -> FloatArray:
    """``values`` over their mean among those of their peers that are there."""
    mean = np.bincount(peers, weights=np.where(start, values, 0.0)) / np.bincount(peers, weights=start).clip(min=1)
    return np.asarray(values / np.where(mean > 0, mean, 1.0)[peers], np.float64)


def _worth_per_cost(saliency: FloatArray, price: FloatArray, here: BoolArray) -> FloatArray:
    """The ``saliency`` of structures over their ``price``, over that of all that are ``here`` together; 1 where these
    have none. All arguments [structures]."""
    total, cost = float(saliency[here].sum()), float(price[here].sum())
    return np.asarray(saliency / price * (cost / total) if total > 0 else np.ones_like(price), np.float64)


class _Sweep:
    def __init__(self, space: SearchSpace, erasures: Erasures, saliency: FloatArray, request: SelectionRequest) -> None:
        self.space, self.erasures, self.limits, self.start = space, erasures, request.limits, request.present(space)
        self._saliency, self._request, self._staying = saliency, request, request.held(space)
        self.model: Final[CostModel] = space.cost_model.merged()
        self.units = erasable(space, request.untrained)
        self.around = {n: [one for one in erasures.around(n) if one in self.units] for n in self.units}
        self.before = [number for number, unit in self.units.items() if not self.start[unit]]
        everything = np.ones_like(self.start)
        self.dense = costs(self.model, everything, self.limits)
        self.present = self._without(self.before)
        dense_price = mixed(prices(self.model, everything, self.limits), self.dense, self.dense)
        self.values = CommonScale.of(
            space, self.units, self.around, self.start, saliency, dense_price, request.compare, request.weight
        )
        self._blocks = self._candidates()
        self._known: dict[frozenset[Block], tuple[float, BoolArray] | None] = {}

    def best(self) -> BoolArray:
        """The choice that is worth most of those that meet the limits; else the one that comes nearest to them."""
        over = self._over(self.present)
        if not over:
            return self.present
        sets = [frozenset[Block](), *map(self._outer, (*self._greedy(over), *self._swept(over)))]
        sets = _some_of_each_size(list(dict.fromkeys(sets)))
        found = [some for some in sets if self._filled(some) is not None]
        if not found:
            return min((self._widths_of(some) for some in sets), key=self._excess)
        best = max(found, key=self._worth)
        better: frozenset[Block] | None = best
        while better is not None:
            best, better = better, next(filter(partial(self._is_better, better), self._near(better)), None)
        filled = self._filled(best)
        assert filled is not None
        return filled[1]

    def _near(self, erased: frozenset[Block]) -> Iterator[frozenset[Block]]:
        """Sets that differ by little, as long as there is time to look at them."""
        for some in map(self._outer, self._changed(erased)):
            if len(self._known) >= _MOST_LOOKS:
                return
            yield some

    def _is_better(self, than: frozenset[Block], erased: frozenset[Block]) -> bool:
        return self._worth(erased) > self._worth(than)

    def _outer(self, erased: frozenset[Block]) -> frozenset[Block]:
        """Without those inside of others."""
        numbers = {*chain(*erased)}
        return frozenset(b for b in erased if any(numbers.isdisjoint(self.around[n][1:]) for n in b))

    def _worth(self, erased: frozenset[Block]) -> float:
        filled = self._filled(erased)
        return -np.inf if filled is None else filled[0]

    def _filled(self, erased: frozenset[Block]) -> tuple[float, BoolArray] | None:
        """What the network without these structures is worth with its best widths, and these; None if the limits are
        not met by any."""
        if erased not in self._known:
            keep = self._widths_of(erased)
            met = not self._over(keep)
            self._known[erased] = (self._kept(keep), keep) if met else None
        return self._known[erased]

    def _widths_of(self, erased: frozenset[Block]) -> BoolArray:
        left = self._without({*self.before, *chain(*erased)})
        request = replace(self._request, removed=~left)
        keep = widths(self.space, np.where(left, self._saliency, 0.0), request)
        return keep | (left & self._gone(erased))

    def _gone(self, erased: frozenset[Block]) -> BoolArray:
        """The units of groups of which nothing is left without these structures, [num_units]."""
        gone = np.zeros_like(self.start)
        numbers = {*self.before, *chain(*erased)}
        outermost = [one for one in numbers if numbers.isdisjoint(self.erasures.around(one)[1:])]
        tensors = self.erasures.gone(outermost) if outermost else frozenset()
        for group in self.space.width_groups:
            gone[group.numbers] = all(piece.tensor in tensors for piece in group.slices)
        return gone

    def _kept(self, keep: BoolArray) -> float:
        return float(self.values.own[keep & self._alive(keep)].sum())

    def _alive(self, keep: BoolArray) -> BoolArray:
        """Whether nothing that is erased is around each unit, [num_units]."""
        return np.asarray(~self.values.inside[~keep[list(self.units.values())]].any(axis=0), dtype=bool)

    def _without(self, erased: Collection[int]) -> BoolArray:
        """What is there at the beginning, without these structures and those inside of them."""
        left = self.start.copy()
        left[[unit for n, unit in self.units.items() if not set(self.around[n]).isdisjoint(erased)]] = False
        return left

    def _over(self, keep: BoolArray) -> dict[str, float]:
        reached = costs(self.model, keep, self.limits)
        return {m: cost - self.limits[m] for m, cost in reached.items() if cost > self.limits[m]}

    def _excess(self, keep: BoolArray) -> float:
        return max((more / self.dense[measure] for measure, more in self._over(keep).items()), default=0.0)

    def _price(self, keep: BoolArray, over: Mapping[str, float]) -> FloatArray:
        return mixed(prices(self.model, keep, over), self.dense, over)

    def _candidates(self) -> list[Block]:
        """The structures that can still be erased, with those that only go together."""
        may = {n for n, unit in self.units.items() if self.present[unit] and not self._staying[unit]}
        blocks = self.erasures.blocks({number: float(self._saliency[unit]) for number, unit in self.units.items()})
        return [block for block in blocks if may.issuperset(block)]

    def _valid(self, ordered: Sequence[Block]) -> Iterator[Block]:
        """Those of ``ordered`` that can go, one after the other."""
        trial = self.erasures.trial()
        for number in self.before:
            trial.erase(number)
        gone = [*self.before]
        for block in ordered:
            if len(block) > 1 and self.erasures.why_not([*gone, *block]) is not None:
                continue
            if all(trial.erase(number) is None for number in block):
                gone += block
                yield block

    def _greedy(self, over: Mapping[str, float]) -> Iterator[frozenset[Block]]:
        """What is erased after each step of a greedy selection of structures alone, by worth per cost and by cost."""
        price = self._price(self.present, over)
        whole = self._wholes(self.present)
        key = {b: sum(whole[n] for n in b) / sum(price[self.units[n]] for n in b) for b in self._blocks}
        saved = {block: -sum(price[self.units[n]] for n in block) for block in self._blocks}
        for order in (key, saved):
            erased: list[Block] = []
            for block in self._valid(sorted(self._blocks, key=lambda block: (order[block], block))):
                erased.append(block)
                yield frozenset(erased)

    def _swept(self, over: Mapping[str, float]) -> Iterator[frozenset[Block]]:
        """What is erased at each of many prices of a cost."""
        price = self._price(self.present, over)
        whole = self._wholes(self.present)
        wide = self.present & ~np.isin(np.arange(len(price)), list(self.units.values()))
        ratios = [self.values.own[wide] / price[wide]]
        ratios.append(np.array([whole[n] / price[self.units[n]] for block in self._blocks for n in block]))
        found = np.unique(np.concatenate(ratios))
        for rate in np.unique(np.quantile(found, np.linspace(0, 1, _RATES))) if len(found) else ():
            yield self._erased_at(float(rate) * (1 + 1e-9), over)

    def _erased_at(self, rate: float, over: Mapping[str, float]) -> frozenset[Block]:
        """What goes where a cost is worth ``rate``."""
        keep, erased = self.present, frozenset[Block]()
        for _ in range(_ROUNDS):
            inside = self._price(keep, over)
            beside = self._price(keep & self._without({*self.before, *chain(*erased)}), over)
            price = np.where(self._alive(self._without({*self.before, *chain(*erased)})), beside, inside)
            keep = self._worthwhile(price, rate)
            erased = self._from_inside(keep, self._price(keep, over), rate)
        return erased

    def _worthwhile(self, price: FloatArray, rate: float) -> BoolArray:
        """The units that are worth more than they cost, and the best of each group, with all structures."""
        ratio = np.where(self.present, self.values.own / price, -np.inf)
        keep = self.present & ((ratio > rate) | self._staying)
        for group, least in zip(self.space.groups, self.space.least_units(), strict=True):
            if group.structure is not None:
                keep[group.first] = self.present[group.first]
            elif keep[group.numbers].sum() < least:
                best = np.argsort(-ratio[group.numbers], kind="stable")[:least]
                keep[group.first + best] = self.present[group.first + best]
        return keep

    def _from_inside(self, keep: BoolArray, price: FloatArray, rate: float) -> frozenset[Block]:
        """The structures of which what is left is not worth its cost, from the innermost outwards."""
        whole = self._wholes(keep)
        cost = {number: float(price[unit]) for number, unit in self.units.items()}
        depth = {block: max(len(self.around[number]) for number in block) for block in self._blocks}
        trial = self.erasures.trial()
        for number in self.before:
            trial.erase(number)
        erased: list[Block] = []

        def ratio(block: Block) -> float:
            return sum(whole[n] for n in block) / max(sum(cost[n] for n in block), 1e-300)

        for level in sorted(set(depth.values()), reverse=True):
            for block in sorted((b for b in self._blocks if depth[b] == level), key=lambda b: (ratio(b), b)):
                if ratio(block) > rate:
                    break
                gone = [*self.before, *chain(*erased), *block]
                if len(block) > 1 and self.erasures.why_not(gone) is not None:
                    continue
                if any(trial.erase(number) is not None for number in block):
                    continue
                erased.append(block)
                for number in block:
                    for outer in self.around[number][1:]:
                        whole[outer] -= whole[number]
                        cost[outer] -= cost[number]
        return frozenset(erased)

    def _wholes(self, keep: BoolArray) -> dict[int, float]:
        """What is left of each structure, in worth."""
        left = self.values.inside @ np.where(keep, self.values.own, 0.0)
        return dict(zip(self.units, left.tolist(), strict=True))

    def _changed(self, erased: frozenset[Block]) -> Iterator[frozenset[Block]]:
        """Sets that differ by little and can be erased: with one less or one more, with one in exchange for another, or
        with one that returns without some of what is inside; of many, those that return the most salient and erase the
        least."""
        own = self._wholes(self.present)
        order = sorted(self._blocks, key=lambda block: (sum(own[n] for n in block), block))
        back = [block for block in order[::-1] if block in erased]
        away = [block for block in order if block not in erased]
        yield from (erased - {block} for block in back[:_CHANGES])
        yield from filter(self._can_go, (erased | {block} for block in away[:_CHANGES]))
        few = round(_CHANGES**0.5)
        swaps = (erased - {one} | {other} for one in back[:few] for other in away[:few])
        yield from filter(self._can_go, swaps)
        parts = (erased - {one} | some for one in back[:_CHANGES] for some in self._all_but_one_inside(one, order))
        yield from islice(filter(self._can_go, parts), _CHANGES)

    def _all_but_one_inside(self, block: Block, order: Sequence[Block]) -> Iterator[frozenset[Block]]:
        """What is directly inside of a structure, without one: with that, less of it returns than all."""
        inside = [one for one in order if {*block}.issuperset(n for number in one for n in self.around[number][1:2])]
        inside = [one for one in inside if all(len(self.around[number]) > 1 for number in one)]
        yield from (frozenset(inside) - {stays} for stays in reversed(inside))

    def _can_go(self, erased: frozenset[Block]) -> bool:
        inner_first = sorted(erased, key=lambda block: (-max(len(self.around[n]) for n in block), block))
        return len([*self._valid(inner_first)]) == len(erased)


def _some_of_each_size(sets: Sequence[frozenset[Block]]) -> list[frozenset[Block]]:
    ordered = sorted(sets, key=lambda some: (len(some), sorted(some)))
    if len(ordered) <= _MOST_FILLS:
        return ordered
    places = np.unique(np.linspace(0, len(ordered) - 1, _MOST_FILLS).round().astype(int))
    return [ordered[place] for place in places.tolist()]
