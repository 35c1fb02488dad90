"""Whether a term of an addition is zero when the weights that make it are."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from niwaki.core.counts import IntArray
from niwaki.rules.constraints import Constraints, Mark
from niwaki.rules.label import Label
from niwaki.trace.graph import Graph, Origin


class Producers:
    """Which parameters make what: those that a method has to set to zero along a dimension whose positions the
    equations of the rules tie to the positions of what they make. More may be tied to them, which does no harm inside
    of what vanishes."""

    def __init__(self, graph: Graph, constraints: Constraints) -> None:
        rows = [(left, right) for left, right, _ in constraints.equal]
        pairs = [pair for left, right in rows for pair in _pairs(left, right)]
        ones, others = (np.concatenate([pair[side] for pair in pairs] or [np.zeros(0, int)]) for side in (0, 1))
        joined = coo_array((np.ones(len(ones), bool), (ones, others)), shape=(constraints.ids, constraints.ids))
        _, self._component = connected_components(joined, directed=False)
        marked = constraints.marked()
        zeroed = ~marked[Mark.CONSUMED] | marked[Mark.PRODUCED] | marked[Mark.ZEROED_BY_METHOD]
        zeroed &= ~marked[Mark.DIRECTION]
        self._by_component: dict[int, set[int]] = {}
        for (value, _), (first, size) in constraints.ids_of.items():
            if graph.values[value].origin is not Origin.PARAMETER:
                continue
            ids = np.arange(first, first + size)
            for component in np.unique(self._component[ids[zeroed[ids]]]).tolist():
                self._by_component.setdefault(component, set()).add(value)

    def of(self, label: Label | None) -> set[int] | None:
        """The parameters, by value number, that make a tensor with this ``label`` along a dimension in which it is zero
        where their units are; None if there is no such dimension."""
        if label is None:
            return None
        for axis, zero in zip(label.axes, label.zero, strict=True):
            if zero and axis.free:
                ids = axis.ids[axis.ids > 0]
                components: Iterable[int] = np.unique(self._component[ids]).tolist()
                return set().union(*(self._by_component.get(component, set()) for component in components))
        return None


def _pairs(left: IntArray, right: IntArray) -> Iterable[tuple[IntArray, IntArray]]:
    """Ids that lie in one row of an equation, whichever side they are on."""
    rows = np.concatenate([left, right], axis=1)
    first = rows.max(axis=1)
    for column in rows.T:
        inside = column > 0
        yield first[inside], column[inside]
