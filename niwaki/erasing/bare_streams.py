"""Terms of additions that are the stream itself, such as x in x + f(x): nothing vanishes with one, only its way past
what it is added to."""

from __future__ import annotations

from collections.abc import Sequence

import rustworkx as rx

from niwaki.core.location import Location
from niwaki.erasing.concatenation import RunFlow
from niwaki.erasing.flow import ADDITIONS, Operand, writes
from niwaki.trace.graph import Graph


def note_of(places: Sequence[Location]) -> str:
    """What a user should know of the streams that additions at ``places`` are given, and that are no structures."""
    return (
        f"{len(places)} additions are given the stream itself, as x in x + f(x) (the first at {places[0].brief}). It "
        "is a structure where a module returns it, such as nn.Identity. Where it is written as a bare expression, only "
        "an exported program can be without it: use as_graph=True and erase='streams'."
    )


def bare_streams(graph: Graph, known: RunFlow, counted: list[int]) -> frozenset[int]:
    """The vertices of operands of additions that something else reads, too, and that follow from the inputs
    ``counted``; masks and positions, which follow from the others only, are not among them, nor is what the sum is
    written over, or what is added to itself."""
    flow, nesting, nodes = known.flow, known.nesting, known.run.nodes
    follow = set(counted).union(*(rx.descendants(flow.graph, vertex) for vertex in counted))

    def is_one(vertex: int, operand: Operand) -> bool:
        join = operand.join
        if join in flow.bypasses or nodes[join].operator not in ADDITIONS or vertex not in nesting.place:
            return False
        root = graph.values[operand.value].root
        others = [graph.values[flow.operands[one].value].root for one in flow.joins[join] if one != vertex]
        return (
            all(one >= flow.operators for one in nesting.within(vertex))
            and graph.values[operand.value].dtype.is_floating_point
            and operand.value not in writes(nodes[join])
            and root not in others
            and not follow.isdisjoint(flow.makers[join, operand.value])
        )

    return frozenset(vertex for vertex, operand in flow.operands.items() if is_one(vertex, operand))
