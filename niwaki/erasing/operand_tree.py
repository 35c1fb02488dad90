"""What vanishes with each operand of a join: all from which every way to an output leads through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import rustworkx as rx

from niwaki.erasing.flow import Flow

T = TypeVar("T")


@dataclass(frozen=True, slots=True, eq=False)
class OperandTree:
    """The operands of a flow in one another. Vertices that reach no output are in none.

    ``order``: all vertices that reach an output, each followed by those of which it is on every way; ``place``: where a
    vertex stands there, ``end``: where the last of those behind it ends. ``nearest``: the innermost operand that a
    vertex is in, itself if it is one; the sink if it is in none.
    """

    order: tuple[int, ...]
    place: dict[int, int]
    end: dict[int, int]
    nearest: dict[int, int]
    around: dict[int, int]  # operand -> the operand around it, or the sink
    sink: int

    @classmethod
    def of(cls, flow: Flow) -> OperandTree:
        """By the dominators of the flow backwards (Lengauer and Tarjan), in nearly linear time."""
        backwards = flow.graph.copy()
        backwards.reverse()
        parent = rx.immediate_dominators(backwards, flow.sink)
        children: dict[int, list[int]] = {}
        for vertex in sorted(parent):
            if vertex != flow.sink:
                children.setdefault(parent[vertex], []).append(vertex)
        order: list[int] = []
        place: dict[int, int] = {}
        end: dict[int, int] = {}
        nearest = {flow.sink: flow.sink}
        around: dict[int, int] = {}
        waiting = [(flow.sink, False)]
        while waiting:
            vertex, done = waiting.pop()
            if done:
                end[vertex] = len(order)
                continue
            place[vertex] = len(order)
            order.append(vertex)
            if vertex != flow.sink:
                outer = nearest[parent[vertex]]
                nearest[vertex] = vertex if flow.is_end(vertex) else outer
                if flow.is_end(vertex):
                    around[vertex] = outer
            waiting.append((vertex, True))
            waiting += [(child, False) for child in reversed(children.get(vertex, []))]
        return cls(tuple(order), place, end, nearest, around, flow.sink)

    def within(self, operand: int) -> tuple[int, ...]:
        """All that vanishes with ``operand``, which is the first of them."""
        return self.order[self.place[operand] : self.end[operand]]

    def contains(self, operand: int, vertex: int) -> bool:
        """Whether ``vertex`` vanishes with ``operand``; all do with the sink."""
        return vertex in self.place and self.place[operand] <= self.place[vertex] < self.end[operand]

    def common(self, vertices: list[int]) -> int:
        """The innermost operand that contains all of ``vertices``, or the sink."""
        first, last = (min(self.place.get(v, -1) for v in vertices), max(self.place.get(v, -1) for v in vertices))
        if first < 0:
            return self.sink
        operand = self.nearest[self.order[first]]
        while operand != self.sink and not self.place[operand] <= first <= last < self.end[operand]:
            operand = self.around[operand]
        return operand

    def summed(self, own: dict[int, int]) -> dict[int, int]:
        """For each operand the sum of ``own`` of the operands in it, its own included."""
        total = {operand: own.get(operand, 0) for operand in self.around}
        for operand in sorted(self.around, key=self.place.__getitem__, reverse=True):
            outer = self.around[operand]
            if outer != self.sink:
                total[outer] += total[operand]
        return total
