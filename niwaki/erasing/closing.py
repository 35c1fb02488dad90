"""Terms that gates make zero: which gates, of the modules without parameters that have one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import final

from niwaki.erasing.concatenation import RunFlow
from niwaki.erasing.flow import ADDITIONS
from niwaki.trace.graph import Node, Ref


@final
class Closing:
    """The gates of one run. ``gates``: the vertices that modules make, by the path of the module; ``paths``: those, by
    the vertex."""

    def __init__(self, known: RunFlow, gates: Mapping[str, int]) -> None:
        self._known, self._gates = known, gates
        self.paths: Mapping[int, str] = {vertex: path for path, vertex in gates.items()}

    def of_sum(self, vertex: int) -> frozenset[str]:
        """The gates that make a term zero which is one of theirs, or a sum of such terms; none if it is neither."""
        if vertex in self.paths:
            return frozenset({self.paths[vertex]})
        flow = self._known.flow
        operand = flow.operands[flow.ends(vertex)[0]]
        return self._of_value(operand.join, operand.value)

    def _of_value(self, reader: int, value: int) -> frozenset[str]:
        flow, nodes = self._known.flow, self._known.run.nodes
        makers = flow.makers.get((reader, value), frozenset())
        if len(makers) != 1:
            return frozenset()
        (place,) = makers
        if place >= flow.operators or nodes[place].operator not in ADDITIONS:
            return frozenset()
        if adds_nothing(nodes[place]):
            return self._of_value(place, nodes[place].args[0].value)
        found: set[str] = set()
        for end in flow.joins.get(place, ()):
            around = self._known.nesting.around.get(end)
            vertex = around if around is not None and end in flow.fans.get(around, ()) else end
            gates = self.of_sum(end) or (self.of_sum(vertex) if vertex != end else frozenset())
            if not gates:
                return frozenset()
            found |= gates
        return frozenset(found)

    def inside(self, vertex: int) -> frozenset[str]:
        """The gates of all terms in a structure."""
        nesting = self._known.nesting
        return frozenset(path for path, own in self._gates.items() if nesting.contains(vertex, own))

    def in_order(self, paths: Iterable[str]) -> tuple[str, ...]:
        """The same paths, in the order in which their terms are added."""
        return tuple(sorted(paths, key=lambda path: self._gates[path]))

    def terms(self, paths: Iterable[str]) -> frozenset[tuple[int, int]]:
        """The terms of these gates: operators, and the values that they are given. Where the same value is given to the
        same operator without a gate, too, it is not among them."""
        flow = self._known.flow
        ends = {end for path in paths if path in self._gates for end in flow.ends(self._gates[path])}
        joins = {flow.operands[end].join for end in ends}
        others = (flow.operands[end] for join in joins for end in flow.joins[join] if end not in ends)
        open_ones = {(end.join, end.value) for end in others}
        return frozenset((flow.operands[end].join, flow.operands[end].value) for end in ends) - open_ones

    def vertices(self, paths: Iterable[str]) -> list[int]:
        """The vertices of these gates."""
        return [self._gates[path] for path in paths if path in self._gates]


def adds_nothing(node: Node) -> bool:
    """Whether an operator adds the number 0 to a tensor, as Python's ``sum`` does to the first term."""
    return (
        node.operator in ADDITIONS
        and isinstance(node.args[0], Ref)
        and type(node.args[1]) in (int, float)
        and node.args[1] == 0
    )
