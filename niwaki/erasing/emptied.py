"""What structures were to concatenations: tensors that have no positions there any more, and modules that make them.

Readers of a concatenation lose the positions of a structure, so that what still runs in its place must have none. That
can be had where modules make the tensor, which are absent then, and operators that leave positions where they are; not
where something passes through that stays.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from niwaki.erasing.flow import CONCATENATIONS
from niwaki.erasing.living import RunLeft, around
from niwaki.trace.graph import Graph, Node, Origin

_WEIGHTS = (Origin.PARAMETER, Origin.BUFFER)


@dataclass(slots=True, eq=False)
class Emptied:
    """``values``: numbers of tensors, each with the dimension of which nothing is left. ``modules``: those without
    parameters that make some of them. ``kept``: paths of modules whose code hands on something else, and why."""

    values: dict[tuple[int, int], None] = field(default_factory=dict)
    modules: dict[str, None] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)


def emptied(graph: Graph, runs: Sequence[RunLeft], absent: Collection[str], dead: Collection[str]) -> Emptied:
    """What is emptied in ``runs``, where the modules at the paths ``absent`` do not run and ``dead`` ones need not."""
    found = Emptied()
    for left in runs:
        called = {call.module for call in left.run.calls}
        _follow(found, graph, left, frozenset(absent), [path for path in dead if path in called])
        _look_at_readers(found, left, frozenset([*absent, *found.modules]))
    return found


def keeps_positions(node: Node) -> bool:
    """Whether an operator leaves all positions of its inputs where they are, or puts them one behind the other."""
    return torch.Tag.pointwise in node.operator.tags or node.operator in CONCATENATIONS


def _follow(found: Emptied, graph: Graph, left: RunLeft, absent: frozenset[str], dead: Collection[str]) -> None:
    nodes = left.run.nodes
    waiting = list(_starts(left))
    seen: set[tuple[int, int]] = set()
    while waiting:
        number, dim, reader = waiting.pop()
        if (number, reader) in seen or graph.values[number].origin in _WEIGHTS:
            continue
        seen.add((number, reader))
        makers = left.flow.makers.get((reader, number), frozenset())
        if not makers or any(place >= left.flow.operators or place in left.living for place in makers):
            found.kept.setdefault(nodes[reader].location.module, "it hands on something that stays")
            continue
        found.values[number, dim] = None
        for place in makers:
            path = nodes[place].location.module
            if not absent.isdisjoint(around(path)):
                continue
            if keeps_positions(nodes[place]):
                shape = len(graph.values[number].shape)
                same = [other for other in nodes[place].inputs() if len(graph.values[other].shape) == shape]
                waiting += [(other, dim, place) for other in same]
                continue
            outer = [one for one in around(path) if one in dead]
            if outer:
                found.modules[outer[-1]] = None
            else:
                found.kept.setdefault(path, f"{nodes[place].operator} at {nodes[place].location.brief} stays")


def _look_at_readers(found: Emptied, left: RunLeft, absent: frozenset[str]) -> None:
    """Living code may do more with a tensor than concatenate it, which not all operators can without entries."""
    numbers = {number for number, _ in found.values}
    for place, node in enumerate(left.run.nodes if numbers else ()):
        path = node.location.module
        if place in left.living:
            if node.operator not in CONCATENATIONS and not numbers.isdisjoint(node.inputs()):
                found.kept.setdefault(path, f"{node.operator} at {node.location.brief} needs what it reads")
            continue
        if absent.isdisjoint(around(path)) and not keeps_positions(node) and not numbers.isdisjoint(node.inputs()):
            found.kept.setdefault(path, f"{node.operator} at {node.location.brief} needs what it reads")


def _starts(left: RunLeft) -> Iterator[tuple[int, int, int]]:
    """The values that are concatenated no more, along which dimension, and the concatenation."""
    for end in left.ends:
        operand = left.flow.operands[end]
        if operand.join in left.flow.bypasses:
            continue
        node = left.run.nodes[operand.join]
        if node.operator in CONCATENATIONS:
            dim = node.args[1] if len(node.args) > 1 else 0
            yield operand.value, dim, operand.join
