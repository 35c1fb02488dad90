"""Runs beside the first, in train mode or of other example calls: structures have to be in them what they are there."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial

from niwaki.erasing.closing import Closing
from niwaki.erasing.concatenation import Concatenated, RunFlow
from niwaki.erasing.flow import CONCATENATIONS, Operand
from niwaki.erasing.passing import Passing
from niwaki.erasing.reading import Given
from niwaki.erasing.side_effects import SideEffects
from niwaki.erasing.vanishing import Producers
from niwaki.trace.graph import Graph, Node, Origin


@dataclass(frozen=True, slots=True)
class Makers:
    """What makes a result that is zero where its ``producers`` are: parameters by value number, and their ``names``.
    ``parts``: of the dimension that it is zero along. Without any, nothing is said of zeros. ``closed``: gates that
    have to be, too; ``factors``: parameters that need not be zero."""

    parts: frozenset[int]
    producers: frozenset[int]
    names: tuple[str, ...]
    closed: frozenset[str] = frozenset()
    factors: frozenset[int] = frozenset()


NO_MAKERS = Makers(frozenset(), frozenset(), ())


class OtherRun:
    """Another run, in which structures have to be what they are in the first."""

    def __init__(
        self,
        graph: Graph,
        known: RunFlow,
        passing: Passing,
        beside: SideEffects,
        joined: Concatenated,
        closing: Closing,
    ) -> None:
        self._nodes, self._flow, self._nesting = known.run.nodes, known.flow, known.nesting
        self._read = readers(graph, known.run.nodes)
        self._passing, self._beside, self._joined, self._closing = passing, beside, joined, closing

    @classmethod
    def of(
        cls,
        graph: Graph,
        known: RunFlow,
        producers: Producers,
        given: Given,
        joined: Concatenated,
        closing: Closing,
    ) -> OtherRun:
        passing = Passing(graph, known.run, known.flow, producers, given)
        return cls(graph, known, passing, SideEffects.of(graph, known.run, known.flow), joined, closing)

    def agrees(
        self,
        structure: int,
        parameters: Collection[int],
        lines: Sequence[str],
        made: Makers,
    ) -> bool:
        """Whether all that reads ``parameters`` or is behind the gates of ``made`` reaches the outputs through operands
        of joins at ``lines`` only, if there is any, which are zero where its producers and gates are, or parts of
        ``structure``, and leaves nothing behind."""
        places = [place for parameter in parameters for place in self._read.get(parameter, ())]
        places += self._closing.vertices(made.closed)
        vertex = self._nesting.common(places) if places else self._nesting.sink
        while vertex != self._nesting.sink:
            ends = [self._flow.operands[end] for end in self._flow.ends(vertex)]
            at = [str(self._nodes[end.join].location) for end in ends if end.join not in self._flow.bypasses]
            if sorted(at) == lines:
                inside = partial(self._nesting.contains, vertex)
                return (
                    all(self._is_it(structure, end) for end in ends)
                    and (not made.names or all(self._vanishes(end, made, inside) for end in ends))
                    and (bool(made.names) or not made.closed or self._closing.of_sum(vertex) == made.closed)
                    and self._beside.of_structure(self._nesting.within(vertex), self._nesting.place) is None
                )
            vertex = self._nesting.around[vertex]
        return not places

    def _is_it(self, structure: int, end: Operand) -> bool:
        node = self._nodes[end.join]
        return node.operator not in CONCATENATIONS or self._joined.operands.get(node, {}).get(end.position) == structure

    def _vanishes(self, end: Operand, made: Makers, inside: Callable[[int], bool]) -> bool:
        return self._passing.vanishes(end, made.parts, made.producers, inside, self._closing.terms(made.closed))


def readers(graph: Graph, nodes: Sequence[Node]) -> dict[int, list[int]]:
    """The operators that are given each parameter."""
    found: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        for number in node.inputs():
            if graph.values[number].origin is Origin.PARAMETER:
                found.setdefault(number, []).append(place)
    return found
