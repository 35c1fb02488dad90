"""Whether a term of an addition is zero when the weights that make it are."""

from __future__ import annotations

from bisect import bisect_right

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from niwaki.core.counts import IntArray
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints, Mark
from niwaki.rules.label import Label
from niwaki.trace.graph import Graph, Origin


class Producers:
    """Which parameters make what: those that a method has to set to zero along a dimension that the equations of the
    rules tie to a dimension of what they make. More may be tied to them, which does no harm inside of what vanishes:
    whole dimensions are looked at, not their positions, so that this costs little."""

    def __init__(self, graph: Graph, constraints: Constraints) -> None:
        self._starts = np.array([block[0] for block in constraints.blocks], np.int64)
        starts = self._starts.tolist()
        self._known: dict[int, tuple[IntArray, list[int]]] = {}  # by the identity of ids, which must not be freed then
        ones, others = [0], [0]
        for left, right, _ in constraints.equal:
            tied = self._blocks(left) + self._blocks(right)
            ones += tied[:-1]
            others += tied[1:]
        size = len(self._starts) + 1
        joined = coo_array((np.ones(len(ones), bool), (ones, others)), shape=(size, size))
        _, self._component = connected_components(joined, directed=False)
        marked = constraints.marked()
        zeroed = ~marked[Mark.CONSUMED] | marked[Mark.PRODUCED] | marked[Mark.ZEROED_BY_METHOD]
        parts = {
            key: int(self._component[bisect_right(starts, first)]) for key, (first, _) in constraints.ids_of.items()
        }
        directions: dict[int, set[int]] = {}  # the parts in which a length makes the same weight zero
        for (value, dim), (first, length) in constraints.ids_of.items():
            if marked[Mark.DIRECTION][first : first + length].any():
                directions.setdefault(value, set()).add(parts[value, dim])
        self._by_component: dict[int, set[int]] = {}
        self._divided: dict[int, set[int]] = {}  # by part, the parameters that are divided by their norm
        for (value, dim), (first, length) in constraints.ids_of.items():
            if graph.values[value].origin is not Origin.PARAMETER or not zeroed[first : first + length].any():
                continue
            part = parts[value, dim]
            if value not in directions:
                self._by_component.setdefault(part, set()).add(value)
            elif part not in directions[value]:
                self._divided.setdefault(part, set()).add(value)

    def along(self, label: Label | None) -> frozenset[int] | None:
        """What a tensor with this ``label`` is tied to along a dimension that it is zero along where units are: numbers
        of connected parts. None if there is no such dimension."""
        if label is None:
            return None
        free = (axis for axis, zero in zip(label.axes, label.zero, strict=True) if zero and axis.free)
        return next((self.tied(axis) for axis in free), None)

    def of(self, parts: frozenset[int]) -> set[int]:
        """The parameters of these ``parts``, by value number."""
        return set().union(*(self._by_component.get(part, set()) for part in parts))

    def divided(self, parts: frozenset[int]) -> set[int]:
        """The parameters of these ``parts`` that cannot be zero as a whole, since they are divided by their norm, and
        that no length of the same parts makes zero; by value number."""
        return set().union(*(self._divided.get(part, set()) for part in parts))

    def follows(self, label: Label | None, parts: frozenset[int]) -> bool:
        """Whether a tensor with this ``label`` is zero along a dimension of ``parts`` where units are."""
        if label is None:
            return False
        free = (axis for axis, zero in zip(label.axes, label.zero, strict=True) if zero and axis.free)
        return any(self.tied(axis) & parts for axis in free)

    def tied(self, axis: Axis) -> frozenset[int]:
        """The numbers of the connected parts that the positions of an axis belong to."""
        return frozenset(int(self._component[block]) for block in self._blocks(axis.ids))

    def _blocks(self, ids: IntArray) -> list[int]:
        """The blocks, numbered from 1, that ``ids`` were handed out in; id 0 was not."""
        known = self._known.get(id(ids))
        if known is None:
            known = self._known[id(ids)] = ids, self._found(ids)
        return known[1]

    def _found(self, ids: IntArray) -> list[int]:
        if not ids.size:
            return []
        ends = np.searchsorted(self._starts, [ids.min(), ids.max()], side="right").tolist()
        if ends[0] == ends[1]:
            return [ends[0]] if ends[0] else []
        found = np.unique(np.searchsorted(self._starts, ids.reshape(-1), side="right")).tolist()
        return [block for block in found if block]
