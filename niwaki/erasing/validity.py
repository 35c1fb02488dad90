"""Which structures can be erased together: outputs still follow from an input, every join keeps an operand."""

from __future__ import annotations

import copy
import heapq
from collections.abc import Collection, Iterable, Mapping
from typing import final

import rustworkx as rx

from niwaki.erasing.flow import Flow
from niwaki.erasing.operand_tree import OperandTree


@final
class Validity:
    """Structures, by the vertex of their operand, that are erased one after the other.

    What an output depends on is a set of inputs, kept as the bits of a number at every vertex. Erasing an operand takes
    bits away behind it, and only there it is looked again: erasing all of many candidates costs little more than one
    walk through the network.

    Args:
        flow: of the network.
        counted: the inputs that keep an output valid, vertices of ``flow.sources``; others are masks and positions.
        nesting: what vanishes with each operand.
        required: inputs of which every output goes on depending on all that it depended on.
    """

    def __init__(
        self, flow: Flow, counted: Iterable[int], nesting: OperandTree, required: Collection[int] = ()
    ) -> None:
        self._flow, self._nesting = flow, nesting
        self._erased: set[int] = set()
        self._taken: set[int] = set()  # operands
        self._order = {vertex: place for place, vertex in enumerate(rx.topological_sort(flow.graph))}
        self._before = {vertex: flow.graph.predecessor_indices(vertex) for vertex in self._order}
        self._behind = {vertex: flow.graph.successor_indices(vertex) for vertex in self._order}
        self._own = {vertex: 1 << place for place, vertex in enumerate(dict.fromkeys((*counted, *required)))}
        self._required = sum(self._own[vertex] for vertex in {*required})
        self._bits: dict[int, int] = {}
        for vertex in self._order:
            self._bits[vertex] = self._seen(vertex, self._bits)
        self._needed = [(vertex, self._bits[vertex] & self._required) for vertex in flow.outputs if self._bits[vertex]]

    def fresh(self) -> Validity:
        """The same with nothing erased, where nothing has been erased from this one."""
        assert not self._erased
        other = copy.copy(self)
        other._erased, other._taken, other._bits = set(), set(), dict(self._bits)
        return other

    @property
    def erased(self) -> frozenset[int]:
        """The operands that are erased."""
        return frozenset(self._erased)

    def why_not(self, operand: int) -> str | None:
        """Why ``operand`` cannot be erased beside what is erased already; None if it can."""
        return self._try(operand)[0]

    def erase(self, operand: int) -> str | None:
        """Erase ``operand`` if that is valid; else say why not, and leave everything as it is."""
        why, changed = self._try(operand)
        if why is None:
            self._bits |= changed
            self._erased.add(operand)
            self._taken.update(self._flow.ends(operand))
        return why

    def _try(self, operand: int) -> tuple[str | None, dict[int, int]]:
        outer = operand
        while outer != self._nesting.sink:
            if outer in self._erased:
                return "it is part of what is erased already", {}
            outer = self._nesting.around[outer]
        ends = self._flow.ends(operand)
        seen = {self._flow.operands[end].join for end in ends}
        taken = self._taken.union(ends)
        if any(taken.issuperset(self._flow.joins[join]) for join in seen):
            return "nothing would be left to join", {}
        changed = dict.fromkeys((operand, *ends), 0)
        waiting = [(self._order[join], join) for join in sorted(seen)]
        heapq.heapify(waiting)
        while waiting:
            _, vertex = heapq.heappop(waiting)
            now = self._seen(vertex, changed)
            if now == self._bits[vertex]:
                continue
            changed[vertex] = now
            for behind in self._behind[vertex]:
                if behind not in seen:
                    seen.add(behind)
                    heapq.heappush(waiting, (self._order[behind], behind))
        for output, required in self._needed:
            bits = changed.get(output, self._bits[output])
            if not bits:
                return "an output would no longer depend on any input", {}
            if bits & required != required:
                return "an output would no longer depend on an input that is required", {}
        return None, changed

    def _seen(self, vertex: int, changed: Mapping[int, int]) -> int:
        """The inputs that ``vertex`` depends on."""
        if vertex in self._taken:
            return 0
        bits = self._own.get(vertex, 0)
        for maker in self._before[vertex]:
            bits |= changed.get(maker, self._bits.get(maker, 0))
        return bits
