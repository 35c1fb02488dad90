"""Which structures can vanish from concatenations, before the rules are asked what depends on their parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from niwaki.core.location import Location
from niwaki.erasing.flow import ADDITIONS, CONCATENATIONS, Bypass, Flow
from niwaki.erasing.operand_tree import OperandTree
from niwaki.rules.zeros import PRODUCTS
from niwaki.trace.graph import Graph, Node, Ref, Run

_Place = tuple[Location, int]  # of a concatenation: how often this line was run before


@dataclass(frozen=True, slots=True, eq=False)
class RunFlow:
    """The flow of one run, and what vanishes with each operand. ``fanned``: the operands behind fans."""

    run: Run
    flow: Flow
    nesting: OperandTree
    fanned: frozenset[int]

    @classmethod
    def of(cls, graph: Graph, run: Run, bypasses: Sequence[Bypass] = ()) -> RunFlow:
        """By the record of the run. ``bypasses``: see `Flow.of`."""
        flow = Flow.of(graph, run, bypasses)
        fanned = frozenset(end for ends in flow.fans.values() for end in ends)
        return cls(run, flow, OperandTree.of(flow), fanned)


@dataclass(frozen=True, slots=True, eq=False)
class Concatenated:
    """``operands``: the structures, by their vertices in the first run, that concatenations of all runs are given, by
    position. ``refused``: why others cannot vanish."""

    operands: Mapping[Node, Mapping[int, int]]
    refused: Mapping[int, str]

    @property
    def structures(self) -> set[int]:
        """The structures whose parts are to be followed."""
        return {structure for given in self.operands.values() for structure in given.values()}


def concatenated(graph: Graph, flows: Sequence[RunFlow]) -> Concatenated:
    """The structures at concatenations with which something vanishes.

    What is added to something that stays is left out: that happens to every half of a rotated head, and following it
    costs time.
    """
    first = flows[0]
    flow, nodes = first.flow, first.run.nodes
    found: dict[_Place, dict[int, int]] = {}
    refused: dict[int, str] = {}
    places = _places(first.run)
    added: dict[int, bool] = {}
    for vertex in sorted(first.nesting.around):
        ends = [flow.operands[end] for end in flow.ends(vertex) if flow.operands[end].join not in flow.bypasses]
        joins = [end.join for end in ends if nodes[end.join].operator in CONCATENATIONS]
        if not joins or not is_structure(first, vertex):
            continue
        for join in joins:
            if join not in added:
                added[join] = _is_added(graph, first, join)
        if any(added[join] for join in joins):
            refused[vertex] = "what it is a part of is added to something that stays"
            continue
        for end in ends:
            if end.join in places:
                found.setdefault(places[end.join], {})[end.position] = vertex
    operands: dict[Node, dict[int, int]] = {}
    lines = Counter(location for location, _ in places.values())
    for known in flows:
        own = _places(known.run)
        unlike = {line for line, times in Counter(line for line, _ in own.values()).items() if times != lines[line]}
        for join, place in own.items():
            if place in found and place[0] not in unlike and join in known.flow.joins:
                operands[known.run.nodes[join]] = found[place]
        for location, time in found:
            if location in unlike:
                why = "another run (in train mode, or of another example call) does not concatenate it as often"
                refused |= dict.fromkeys(found[location, time].values(), why)
    left = {node: {p: one for p, one in given.items() if one not in refused} for node, given in operands.items()}
    return Concatenated({node: given for node, given in left.items() if given}, refused)


def is_structure(known: RunFlow, vertex: int) -> bool:
    """Whether anything vanishes with an operand or a fan: operators, or a skip of what lives on, which is concatenated
    once and is not itself a concatenation (as what each layer of a chain hands on)."""
    flow, nesting = known.flow, known.nesting
    if any(one < flow.operators for one in nesting.within(vertex)):
        return True
    if vertex in flow.fans or vertex in known.fanned or flow.operands[vertex].join in flow.bypasses:
        return False
    operand = flow.operands[vertex]
    made = [maker for maker in flow.makers[operand.join, operand.value] if maker < flow.operators]
    nodes = known.run.nodes
    return (
        nodes[operand.join].operator in CONCATENATIONS
        and bool(made)
        and all(nodes[maker].operator not in CONCATENATIONS for maker in made)
    )


def _places(run: Run) -> dict[int, _Place]:
    """The concatenations of a run."""
    times, found = Counter[Location](), {}
    for place, node in enumerate(run.nodes):
        if node.operator in CONCATENATIONS:
            found[place] = node.location, times[node.location]
            times[node.location] += 1
    return found


def _is_added(graph: Graph, known: RunFlow, join: int) -> bool:
    """Whether the result of a concatenation, or what becomes of it entry by entry, is added to what does not follow
    from it."""
    nodes = known.run.nodes
    seen, waiting, additions = {join}, [join], []
    while waiting:
        for place in known.flow.graph.successor_indices(waiting.pop()):
            if place in known.flow.operands:
                place = known.flow.operands[place].join
            if place in known.flow.fans:
                behind = [known.flow.operands[end].join for end in known.flow.fans[place]]
            else:
                behind = [place]
            for one in behind:
                if one in known.flow.bypasses and one not in seen:
                    seen.add(one)
                    waiting.append(one)
                if one in seen or one >= known.flow.operators or not _keeps_entries(graph, nodes[one]):
                    continue
                seen.add(one)
                waiting.append(one)
                if nodes[one].operator in ADDITIONS:
                    additions.append(one)
    for place in additions:
        for operand in nodes[place].args[:2]:
            makers = known.flow.makers.get((place, operand.value), frozenset()) if isinstance(operand, Ref) else ()
            if makers and seen.isdisjoint(makers):
                return True
    return False


def _keeps_entries(graph: Graph, node: Node) -> bool:
    """Whether an operator works entry by entry, or only changes the shape."""
    if torch.Tag.pointwise in node.operator.tags or node.operator in ADDITIONS:
        return True
    if node.operator in PRODUCTS:
        return False
    sizes = {_size(graph, number) for number in node.inputs()}
    return sizes == {_size(graph, number) for number in node.outputs if number is not None}


def _size(graph: Graph, number: int) -> int:
    return torch.Size(graph.values[number].shape).numel()
