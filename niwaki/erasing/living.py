"""What still reaches an output of each run without some structures, and which modules it runs in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import final

from niwaki.core.structures import Structure
from niwaki.erasing.concatenation import RunFlow
from niwaki.erasing.flow import ADDITIONS, Bypass, Flow
from niwaki.erasing.operand_tree import OperandTree
from niwaki.erasing.other_runs import readers
from niwaki.erasing.structures import FoundStructures
from niwaki.trace.graph import Graph, Origin, Run


@dataclass(frozen=True, eq=False)
class RunLeft:
    """A run without the operands ``erased`` of joins. ``living``: the vertices from which an output is still reached;
    ``useful``: those from which one was."""

    run: Run
    flow: Flow
    nesting: OperandTree
    erased: frozenset[int]
    living: frozenset[int]

    @cached_property
    def dead(self) -> tuple[int, ...]:
        """The operators that no output follows from any more."""
        return tuple(
            place for place in range(self.flow.operators) if place in self.nesting.place and place not in self.living
        )

    @cached_property
    def dissolved(self) -> dict[int, int]:
        """The additions of which one operand is left, each with the value of that operand."""
        found, taken = {}, set(self.ends)
        for end in self.ends:
            join = self.flow.operands[end].join
            if join in self.flow.bypasses:
                continue
            rest = [other for other in self.flow.joins[join] if other not in taken]
            if len(rest) == 1 and self.run.nodes[join].operator in ADDITIONS:
                found[join] = self.flow.operands[rest[0]].value
        return found

    @cached_property
    def bypassed(self) -> tuple[Bypass, ...]:
        """The layers that are left out as a whole, in the order in which they end."""
        joins = {self.flow.operands[end].join for end in self.ends}
        return tuple(one for join, one in self.flow.bypasses.items() if join in joins)

    @cached_property
    def handed_on(self) -> dict[int, int]:
        """The results of layers that are left out, and what takes the place of each."""
        found: dict[int, int] = {}
        for one in self.bypassed:
            found[one.result] = found.get(one.given, one.given)
        return found

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """The operands of joins that go."""
        return tuple(end for vertex in self.erased for end in self.flow.ends(vertex))

    def modules(self, places: Iterable[int]) -> set[str]:
        """The modules that run these operators, and all around them."""
        return {path for place in places for path in around(self.run.nodes[place].location.module)}

    @cached_property
    def living_modules(self) -> set[str]:
        """The modules with an operator that lives."""
        return self.modules(place for place in self.living if place < self.flow.operators)

    @cached_property
    def busy_modules(self) -> set[str]:
        """The modules with an operator that lives and is no join that hands on the operand it has left."""
        return self.modules(p for p in self.living if p < self.flow.operators and p not in self.dissolved)

    @cached_property
    def dead_modules(self) -> set[str]:
        """The modules with an operator that does not."""
        return self.modules(self.dead)


@final
class LivingRuns:
    """The runs of a network that did not fail, without any choice of structures. ``flows``: those of all its runs."""

    def __init__(self, found: FoundStructures, flows: Sequence[RunFlow]) -> None:
        self._found = found
        self._others = [
            _Run(found.graph, known, found.gates[number] if found.gates else {})
            for number, known in enumerate(flows)
            if number and known.run.error is None
        ]

    def without(self, erased: Collection[int]) -> list[RunLeft]:
        """The runs without the structures of these numbers."""
        found = self._found
        first = frozenset(found.vertices[number] for number in erased)
        left = [_left(found.graph.runs[0], found.flow, found.nesting, first)]
        for other in self._others:
            vertices = {other.operand_of(found.listed[number]) for number in erased}
            left.append(_left(other.run, other.flow, other.nesting, frozenset(vertices - {None})))  # type: ignore[arg-type]
        return left


class _Run:
    """A run beside the first."""

    def __init__(self, graph: Graph, known: RunFlow, gates: Mapping[str, int]) -> None:
        self.run, self.flow, self.nesting, self._gates = known.run, known.flow, known.nesting, gates
        self._read = readers(graph, known.run.nodes)
        self._number = {value.name: value.number for value in graph.values if value.origin is Origin.PARAMETER}

    def operand_of(self, structure: Structure) -> int | None:
        """The vertex of the operand that is this structure; None if nothing reads its parameters."""
        if structure.layer is not None:
            return self.flow.layers[structure.layer]
        places = [place for name in structure.parameters for place in self._read.get(self._number[name], ())]
        places += [self._gates[path] for path in structure.gates if path in self._gates]
        operand = self.nesting.common(places) if places else self.nesting.sink
        while operand != self.nesting.sink:
            joins = {self.flow.operands[end].join for end in self.flow.ends(operand)} - self.flow.bypasses.keys()
            if any(self.run.nodes[join].location == structure.location for join in joins):
                return operand
            operand = self.nesting.around[operand]
        return None


def _left(run: Run, flow: Flow, nesting: OperandTree, erased: frozenset[int]) -> RunLeft:
    seen, waiting = {flow.sink}, [flow.sink]
    while waiting:
        for maker in flow.graph.predecessor_indices(waiting.pop()):
            if maker not in seen and maker not in erased:
                seen.add(maker)
                waiting.append(maker)
    return RunLeft(run, flow, nesting, erased, frozenset(seen))


@cache
def around(path: str) -> tuple[str, ...]:
    """The paths of a module and of all around it, the model itself among them."""
    return tuple(_around(path))


def _around(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""
