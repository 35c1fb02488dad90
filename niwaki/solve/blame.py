"""Find the operators that caused a failure, and the same operators in the other layers.

Layers of one class run the same lines: what fails in one of them fails in all. Two operators are alike when they are
calls of the same ATen operator from the same line of source, on tensors of the same shapes, in modules whose paths
differ only in numbers. A larger ``breadth`` asks for less, for networks in which every layer has another width.
"""

from __future__ import annotations

import heapq
import itertools
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Hashable, Iterator

from niwaki.rules.constraints import Constraints
from niwaki.trace.graph import Graph

BREADTHS = 3  # the line, shapes and modules; the line; the operator
_NUMBER = re.compile(r"\d+")
_NEAR = 400  # operators between a failure and its cause; anything farther away is in another layer


class Blame:
    """Looks up operators by their index in ``constraints.touched``, which lists the operators of all runs in order."""

    def __init__(self, graph: Graph, constraints: Constraints) -> None:
        self._graph, self._touched = graph, constraints.touched
        self._alike: dict[int, dict[Hashable, list[int]]] = {}  # by breadth, by kind
        self._makers: dict[int, list[int]] = defaultdict(list)  # value -> the operators that made or changed it
        for place, touched in enumerate(constraints.touched):
            for number in touched.node.outputs:
                if number is not None:
                    self._makers[number].append(place)

    def kind(self, place: int, breadth: int) -> Hashable:
        """A key that is equal for operators that are alike."""
        node = self._touched[place].node
        if breadth == BREADTHS - 1:
            return node.operator
        line = node.operator, node.location.file, node.location.line
        if breadth:
            return line
        values = self._graph.values
        shapes = tuple(values[number].shape for number in (*node.inputs(), *node.outputs) if number is not None)
        return line, shapes, _NUMBER.sub("#", node.location.module)

    def alike(self, place: int, breadth: int) -> list[int]:
        """The indices of all operators like the one at ``place``, this one first."""
        if breadth not in self._alike:
            kinds = self._alike[breadth] = {}
            for other in range(len(self._touched)):
                kinds.setdefault(self.kind(other, breadth), []).append(other)
        return [place, *(other for other in self._alike[breadth][self.kind(place, breadth)] if other != place)]

    def sources(self, place: int) -> Iterator[int]:
        """Yield the operator at ``place`` and all operators that it depends on, the latest first."""
        waiting, seen = [-place], {place}
        while waiting:
            here = -heapq.heappop(waiting)
            yield here
            for number in self._touched[here].node.inputs():
                makers = self._makers.get(number, ())
                before = bisect_left(makers, here)
                if before and makers[before - 1] not in seen:
                    seen.add(makers[before - 1])
                    heapq.heappush(waiting, -makers[before - 1])

    def before(self, place: int) -> Iterator[int]:
        """Yield `sources`, then whatever else ran before, the latest first: Python can pass numbers on unseen."""
        seen = set()
        for source in self.sources(place):
            seen.add(source)
            yield source
        yield from (other for other in range(place, -1, -1) if other not in seen)

    def counterparts(self, place: int, blamed: int, breadth: int) -> list[int]:
        """For each operator like the one at ``place``, find what corresponds to ``blamed``: the nearest of its sources
        that is like ``blamed``, or else the operator at the same distance before it."""
        wanted, found = self.kind(blamed, breadth), [blamed]
        depends = blamed in self.sources(place)
        for other in self.alike(place, breadth)[1:]:
            if depends:
                near = itertools.islice(self.sources(other), _NEAR)
                found.append(next((s for s in near if self.kind(s, breadth) == wanted), blamed))
            elif other >= place - blamed and self.kind(other - place + blamed, breadth) == wanted:
                found.append(other - place + blamed)
        return list(dict.fromkeys(found))
