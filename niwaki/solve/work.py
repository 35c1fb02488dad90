"""What the operators of the first run have to do: what latency is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from niwaki.rules.axis import Axis
from niwaki.solve.facts import Facts
from niwaki.trace.graph import Graph, Node, Origin
from niwaki.trace.operators import traits


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """What one operator has to do, as a sum of terms, each so many times the positions of its axes."""

    operator: str
    terms: tuple[tuple[int, tuple[Axis, ...]], ...]


def tasks(graph: Graph, facts: Facts) -> list[Task]:
    """Of every operator of the first run that computes anything."""
    if not graph.runs or graph.runs[0].error is not None:
        return []
    macs: dict[int, list[tuple[int, tuple[Axis, ...]]]] = {}
    for term in facts.macs:
        macs.setdefault(term.node, []).append((term.times, term.axes))
    found = []
    for number, node in enumerate(graph.runs[0].nodes):
        if traits(node.operator).viewing and not traits(node.operator).writes:
            continue
        terms = macs[number] if number in macs else _largest(graph, facts, node)
        if terms:
            found.append(Task(str(node.operator), tuple(terms)))
    return found


def _largest(graph: Graph, facts: Facts, node: Node) -> list[tuple[int, tuple[Axis, ...]]]:
    """The entries of the largest tensor that flows in or out; parameters are not flowing."""
    numbers = [number for number in (*node.outputs, *node.inputs()) if number is not None]
    flowing = [n for n in numbers if graph.values[n].origin not in (Origin.PARAMETER, Origin.BUFFER)]
    if not flowing:
        return []
    value = max((graph.values[number] for number in flowing), key=lambda value: math.prod(value.shape))
    label = facts.labels[value.number]
    free = () if label is None else tuple(axis for axis in label.axes if axis.free)
    size = math.prod(value.shape)
    return [(size // math.prod(axis.size for axis in free), free)] if size else []
