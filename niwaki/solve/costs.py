"""Count what every operator costs: multiply-accumulates, and the memory of its tensors while they live."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.trace.graph import Graph, Node, Origin, Run
from niwaki.trace.operators import traits

_SHARING = {torch.ops.aten._unsafe_view.default}  # its schema does not say that the result shares memory


@dataclass(frozen=True, slots=True, eq=False)
class Lifetime:
    """``bytes`` for each combination of positions of ``axes``, alive from moment ``born`` up to, not including,
    ``died``."""

    bytes: int
    axes: tuple[Axis, ...]
    born: int
    died: int


def lifetimes(graph: Graph, constraints: Constraints) -> list[Lifetime]:
    """The lifetimes of all memory that the first run allocates; moment i is right after its operator i.

    Memory is alive as long as Python holds any tensor that shares it. What an operator allocates and frees inside
    itself does not count. The run does not take torch's fast paths, such as that of ``nn.TransformerEncoderLayer``,
    which keep more inside operators; where they are taken, less memory is measured than is counted here.
    """
    if not graph.runs or graph.runs[0].error is not None:
        return []
    run = graph.runs[0]
    root_of = _roots(graph, run)
    born: dict[int, int] = {}
    died: dict[int, int] = {}
    for moment, node in enumerate(run.nodes):
        for number in node.outputs:
            if number is None or graph.values[number].origin is not Origin.COMPUTED:
                continue
            root = root_of.get(graph.values[number].root, graph.values[number].root)
            if graph.values[root].origin is Origin.COMPUTED:
                born.setdefault(root, moment)
                died[root] = max(died.get(root, 0), run.ended.get(number, len(run.nodes)), moment + 1)
    found = []
    for root, moment in born.items():
        value = graph.values[root]
        label = constraints.labels[root]
        free = () if label is None else tuple(axis for axis in label.axes if axis.free)
        size = math.prod(value.shape) // math.prod(axis.size for axis in free) if math.prod(value.shape) else 0
        if size:
            found.append(Lifetime(size * value.dtype.itemsize, free, moment, died[root]))
    return found


def _roots(graph: Graph, run: Run) -> dict[int, int]:
    """Map values that share the memory of another, though their operator does not say so, to the owner."""
    shared: dict[int, int] = {}
    for node in run.nodes:
        if node.operator in _SHARING:
            given, made = next(node.inputs()), node.outputs[0]
            assert made is not None
            root = graph.values[given].root
            shared[graph.values[made].root] = shared.get(root, root)
    return shared


@dataclass(frozen=True, slots=True, eq=False)
class OperatorTask:
    """The work of one operator, as a sum of terms. Each term is a factor times the positions of its axes. ``place``: of
    the operator in the first run."""

    operator: str
    place: int
    terms: tuple[tuple[int, tuple[Axis, ...]], ...]


def tasks(graph: Graph, constraints: Constraints) -> list[OperatorTask]:
    """The tasks of all operators of the first run that compute anything."""
    if not graph.runs or graph.runs[0].error is not None:
        return []
    macs: dict[int, list[tuple[int, tuple[Axis, ...]]]] = {}
    for term in constraints.macs:
        macs.setdefault(term.node, []).append((term.times, term.axes))
    found = []
    for number, node in enumerate(graph.runs[0].nodes):
        if traits(node.operator).viewing and not traits(node.operator).writes:
            continue
        terms = macs[number] if number in macs else _largest(graph, constraints, node)
        if terms:
            found.append(OperatorTask(str(node.operator), number, tuple(terms)))
    return found


def _largest(graph: Graph, constraints: Constraints, node: Node) -> list[tuple[int, tuple[Axis, ...]]]:
    """The entries of the largest tensor that an operator reads or makes, parameters and buffers aside."""
    numbers = [number for number in (*node.outputs, *node.inputs()) if number is not None]
    flowing = [n for n in numbers if graph.values[n].origin not in (Origin.PARAMETER, Origin.BUFFER)]
    if not flowing:
        return []
    value = max((graph.values[number] for number in flowing), key=lambda value: math.prod(value.shape))
    label = constraints.labels[value.number]
    free = () if label is None else tuple(axis for axis in label.axes if axis.free)
    size = math.prod(value.shape)
    return [(size // math.prod(axis.size for axis in free), free)] if size else []
