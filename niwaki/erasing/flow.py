"""The record of a run as a graph of operators: who reads what whom has made or written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import rustworkx as rx
import torch

from niwaki.erasing.stacked import added_stacks
from niwaki.trace.graph import Graph, Node, Origin, Ref, Run
from niwaki.trace.operators import traits

ADDITIONS = frozenset({torch.ops.aten.add.Tensor, torch.ops.aten.add_.Tensor})
CONCATENATIONS = frozenset({torch.ops.aten.cat.default})

_GIVEN = (Origin.PARAMETER, Origin.BUFFER, Origin.CONSTANT)


@dataclass(frozen=True, slots=True)
class Operand:
    """Vertex of one operand of a join: ``position`` among those of the operator ``join``, ``value`` its number."""

    join: int
    position: int
    value: int


@dataclass(frozen=True, slots=True)
class Bypass:
    """The only call of the layer at ``path``, operators ``first`` to before ``end``: what it is ``given`` can take the
    place of its ``result``, both numbers of values."""

    path: str
    first: int
    end: int
    given: int
    result: int


@dataclass(slots=True, eq=False)
class Flow:
    """``graph``: vertices 0 ... N - 1 are the operators of the run, then come sources (inputs of the model), operands
    of joins, fans, and last the sink, which all outputs lead to. Arrows point from what makes to what reads. A fan
    stands between what makes a value and several operands that are this value, of those that an output depends on.

    ``sources``: vertices of the inputs that outputs may depend on. ``outputs``: vertices that make the outputs.
    ``makers``: per operator and value that it is given, the vertices that have made or written it by then.
    ``bypasses``: vertices of joins that are no operators: of what a layer is given, and what it returns.
    """

    graph: rx.PyDiGraph[None, None]
    operators: int
    operands: dict[int, Operand]
    sources: dict[int, int]  # vertex -> value number
    outputs: tuple[int, ...]
    sink: int
    joins: dict[int, list[int]] = field(default_factory=dict)  # operator -> vertices of its operands
    makers: dict[tuple[int, int], frozenset[int]] = field(default_factory=dict)
    fans: dict[int, tuple[int, ...]] = field(default_factory=dict)  # vertex -> vertices of the operands behind it
    bypasses: dict[int, Bypass] = field(default_factory=dict)

    @classmethod
    def of(cls, graph: Graph, run: Run, bypasses: Sequence[Bypass] = ()) -> Flow:
        """The flow of ``run``. Memory that is written in place is made anew by the operator that writes. ``bypasses``:
        of layers, in the order in which these end, inner ones first."""
        nodes, values = run.nodes, graph.values
        found: rx.PyDiGraph[None, None] = rx.PyDiGraph(multigraph=False)
        found.add_nodes_from([None] * len(nodes))
        flow = cls(found, len(nodes), {}, {}, (), -1)
        made: dict[int, int] = {}  # value -> the operator that made it
        written: dict[int, int] = {}  # memory -> the operator that wrote there last
        weights = {value.number for value in values if value.origin in _GIVEN}  # and what is made of them alone
        for value in values:
            if value.origin is Origin.INPUT:
                made[value.number] = written[value.root] = vertex = found.add_node(None)
                flow.sources[vertex] = value.number

        def makers(number: int) -> set[int]:
            known = (made.get(number), written.get(values[number].root))
            return {maker for maker in known if maker is not None}

        added = added_stacks(graph, run)
        for place, node in enumerate(nodes):
            given = operands(node)
            if place in added:
                given = [(position, number) for position, number in enumerate(node.inputs())]
            several = {number for position, number in given if position is not None}
            if several <= weights or any(values[number].shape == (0,) for number in several):
                given = [(None, number) for number in node.inputs()]
            for position, number in given:
                vertex = place
                if position is not None:
                    vertex = found.add_node(None)
                    found.add_edge(vertex, place, None)
                    flow.operands[vertex] = Operand(place, position, number)
                    flow.joins.setdefault(place, []).append(vertex)
                flow.makers[place, number] = frozenset(makers(number))
                for maker in flow.makers[place, number]:
                    found.add_edge(maker, vertex, None)
            for number in writes(node):
                written[values[number].root] = place
            if weights.issuperset(node.inputs()):
                weights.update(output for output in node.outputs if output is not None)
            for output in node.outputs:
                if output is not None:
                    made[output] = place
                    if values[output].root == output:
                        written[output] = place
        flow.outputs = tuple(dict.fromkeys(maker for number in run.outputs for maker in sorted(makers(number))))
        flow._add_fans()
        flow.sink = found.add_node(None)
        found.add_edges_from_no_data([(vertex, flow.sink) for vertex in flow.outputs])
        flow._add_bypasses(bypasses, made)
        return flow

    def _add_bypasses(self, bypasses: Sequence[Bypass], made: dict[int, int]) -> None:
        stands: dict[int, int] = {}  # for an operator, the last join that hands on its result
        for one in bypasses:
            maker = made[one.result]
            last = stands.get(maker, maker)
            given = next(
                makers for place in range(one.first, one.end) if (makers := self.makers.get((place, one.given)))
            )
            join, past, through = self.graph.add_node(None), self.graph.add_node(None), self.graph.add_node(None)
            behind = list(self.graph.successor_indices(last))
            self.graph.remove_edges_from([(last, vertex) for vertex in behind])
            self.graph.add_edges_from_no_data([(join, vertex) for vertex in behind])
            self.graph.add_edges_from_no_data([(last, through), (through, join), (past, join)])
            self.graph.add_edges_from_no_data([(stands.get(vertex, vertex), past) for vertex in sorted(given)])
            self.operands |= {past: Operand(join, 0, one.given), through: Operand(join, 1, one.result)}
            self.joins[join], self.bypasses[join], stands[maker] = [past, through], one, join
            self.makers |= {(join, one.given): given, (join, one.result): frozenset({maker})}
        self.outputs = tuple(stands.get(vertex, vertex) for vertex in self.outputs)

    def _add_fans(self) -> None:
        needed = set(self.outputs).union(*(rx.ancestors(self.graph, vertex) for vertex in self.outputs))
        same: dict[tuple[int, frozenset[int]], list[int]] = {}
        for vertex, operand in self.operands.items():
            key = operand.value, self.makers[operand.join, operand.value]
            if vertex in needed:
                same.setdefault(key, []).append(vertex)
        for (_, makers), vertices in same.items():
            if makers and len(vertices) > 1:
                fan = self.graph.add_node(None)
                self.fans[fan] = tuple(vertices)
                self.graph.remove_edges_from([(maker, vertex) for maker in makers for vertex in vertices])
                self.graph.add_edges_from_no_data([(maker, fan) for maker in sorted(makers)])
                self.graph.add_edges_from_no_data([(fan, vertex) for vertex in vertices])

    @property
    def layers(self) -> dict[str, int]:
        """The vertices of what layers return, where they can be left out, by the path of the layer."""
        return {one.path: self.joins[join][1] for join, one in self.bypasses.items()}

    def ends(self, vertex: int) -> tuple[int, ...]:
        """The vertices of the operands that go where all behind ``vertex`` goes, an operand or a fan."""
        return self.fans.get(vertex, (vertex,))

    def readers(self, place: int, number: int) -> list[int]:
        """The vertices that read a value which the operator at ``place`` is given: those of operands that are it, or
        the fan in front of them; else the operator's."""
        reading = [one for one in self.joins.get(place, ()) if self.operands[one].value == number]
        return list(dict.fromkeys(self._fan_before(one) for one in reading)) or [place]

    def _fan_before(self, operand: int) -> int:
        return next((one for one in self.graph.predecessor_indices(operand) if one in self.fans), operand)

    def is_end(self, vertex: int) -> bool:
        """Whether a vertex is an operand or a fan."""
        return vertex in self.operands or vertex in self.fans


def operands(node: Node) -> list[tuple[int | None, int]]:
    """The tensors that an operator is given: the position of an operand of a join (None of all others), its value."""
    if node.operator in ADDITIONS:
        two = node.args[:2]
        if len(two) == len(ADDITIONS) and all(isinstance(one, Ref) for one in two):
            return [(position, one.value) for position, one in enumerate(two)]
    if node.operator in CONCATENATIONS and len(node.args[0]) > 1:
        return [(position, one.value) for position, one in enumerate(node.args[0])]
    return [(None, number) for number in node.inputs()]


def writes(node: Node) -> Iterable[int]:
    """The values that an operator writes to."""
    for position, name in traits(node.operator).writes:
        given = node.args[position] if position < len(node.args) else node.kwargs.get(name)
        for item in given if isinstance(given, Sequence) else (given,):
            if isinstance(item, Ref):
                yield item.value
