"""Modules without parameters that make terms of additions: a gate on what such a module returns makes the term zero.

A module that returns what it is given, such as an `nn.Identity` beside a branch, leaves no trace in the record: its
result is the stream itself. So the network is run once more with a copy in place of each such result, and where that
goes is where the result went.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from typing import Any

import torch
from torch import nn

from niwaki.core.names import named_modules, named_parameters
from niwaki.erasing.closing import adds_nothing
from niwaki.erasing.concatenation import RunFlow, is_structure
from niwaki.erasing.edited import running
from niwaki.erasing.flow import ADDITIONS
from niwaki.erasing.living import around
from niwaki.erasing.other_runs import readers
from niwaki.trace.extent import NOTHING
from niwaki.trace.fake import failures_not_logged
from niwaki.trace.graph import Graph, ModuleCall, Ref
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import trace

aten = torch.ops.aten


def gate_modules(
    model: nn.Module, calls: Sequence[ExampleCall], graph: Graph, flows: Sequence[RunFlow]
) -> list[dict[str, int]]:
    """The modules of ``model`` that have no parameters, are called once in every run, and return a term of an addition
    which goes nowhere else; of several for one term the outermost. Of each run the vertices of its flow, by the paths
    of the modules: the same paths in all runs that did not fail."""
    bare = _without_parameters(model)
    found: list[dict[str, int]] = []
    for known, call in zip(flows, cycle(calls), strict=False):
        here: dict[str, int] = {}
        if known.run.error is None and bare:
            once = list(_called_once(known, bare))
            here = dict(_made(graph, known, once))
            here |= _handed_on(model, call, graph, known, [one for one in once if one.module not in here])
        found.append(here)
    living = [number for number, known in enumerate(flows) if known.run.error is None]
    lines = [{path: _lines(flows[number], vertex) for path, vertex in found[number].items()} for number in living]
    kept: dict[int, str] = {}
    for path in sorted(lines[0], key=len, reverse=True):
        if all(other.get(path) == lines[0][path] for other in lines):
            kept[found[0][path]] = path
    paths = set(kept.values())
    return [{path: vertex for path, vertex in here.items() if path in paths} for here in found]


def _without_parameters(model: nn.Module) -> set[str]:
    weighty = {path for name, _ in named_parameters(model) for path in around(name.rpartition(".")[0])}
    return {path for path, _ in named_modules(model) if path not in weighty}


def _called_once(known: RunFlow, bare: set[str]) -> Iterator[ModuleCall]:
    """The calls of modules that are called once and return one tensor."""
    times = Counter(call.module for call in known.run.calls)
    for call in known.run.calls:
        if call.module in bare and times[call.module] == 1 and isinstance(call.result, Ref):
            yield call


def _lines(known: RunFlow, vertex: int) -> list[str]:
    ends = (known.flow.operands[end] for end in known.flow.ends(vertex))
    return sorted(f"{known.run.nodes[end.join].location} {end.position}" for end in ends)


def _made(graph: Graph, known: RunFlow, calls: Iterable[ModuleCall]) -> Iterator[tuple[str, int]]:
    """The modules that compute a term, and its vertex."""
    flow, nesting = known.flow, known.nesting
    read = {place for places in readers(graph, known.run.nodes).values() for place in places}
    weighing = nesting.summed(Counter(nesting.nearest[place] for place in read if place in nesting.nearest))
    by_value: dict[int, list[int]] = {}
    for vertex in nesting.around:
        operand = flow.operands[flow.ends(vertex)[0]]
        if not weighing[vertex] and is_structure(known, vertex) and _is_added(known, vertex):
            by_value.setdefault(_before_nothing(known, operand.join, operand.value), []).append(vertex)
    for call in calls:
        for vertex in by_value.get(call.result.value, ()):
            run = [place for place in range(call.first, call.end) if place in nesting.place]
            memory = graph.values[call.result.value].root
            fresh = any(memory in known.run.nodes[place].outputs for place in run)
            if fresh and all(nesting.contains(vertex, place) for place in run):
                yield call.module, vertex


def _is_added(known: RunFlow, vertex: int) -> bool:
    joins = {known.flow.operands[end].join for end in known.flow.ends(vertex)} - known.flow.bypasses.keys()
    return any(known.run.nodes[join].operator in ADDITIONS for join in joins)


def _before_nothing(known: RunFlow, reader: int, value: int) -> int:
    """What ``value`` was before the number 0 was added to it."""
    for place in known.flow.makers.get((reader, value), ()):
        if place < known.flow.operators and adds_nothing(known.run.nodes[place]):
            return _before_nothing(known, place, known.run.nodes[place].args[0].value)
    return value


def _handed_on(
    model: nn.Module, call: ExampleCall, graph: Graph, known: RunFlow, calls: Sequence[ModuleCall]
) -> Iterator[tuple[str, int]]:
    """The modules that return what they are given, where that is added, and the vertex of the term."""
    terms = dict(_skips(known))
    values = {value for value, _ in terms.values()}
    places = {place: known.run.nodes[place].location.module for place, _ in terms}
    asked = [
        one.module
        for one in calls
        if one.result.value in values
        and one.result.value in one.tensors.values()
        and any(terms[key][0] == one.result.value and places[key[0]] in around(one.module) for key in terms)
    ]
    if not asked:
        return
    read = _read_from(model, call, known, asked)
    for path in asked:
        term = terms.get(read[path]) if path in read else None
        if term is not None:
            yield path, term[1]


def _skips(known: RunFlow) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """The terms with which nothing vanishes: by the operator that reads a tensor and its position there, the tensor and
    the vertex."""
    flow, nodes = known.flow, known.run.nodes
    for vertex in known.nesting.around:
        if vertex in flow.fans or not _is_added(known, vertex):
            continue
        operand = flow.operands[vertex]
        writes = nodes[operand.join].operator is aten.add_.Tensor and operand.position == 0
        own = [place for place in known.nesting.within(vertex) if place < flow.operators]
        if not own and not writes:  # (what is written over is the stream itself)
            yield (operand.join, operand.position), (operand.value, vertex)
        if len(own) == 1 and adds_nothing(nodes[own[0]]):
            yield (own[0], 0), (nodes[own[0]].args[0].value, vertex)


def _read_from(model: nn.Module, call: ExampleCall, known: RunFlow, paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """The only operator that reads what each of these modules returns, and at which position, if there is one."""
    modules = dict(named_modules(model))
    with ExitStack() as stack:
        for path in paths:
            stack.enter_context(running(modules[path], _copied(modules[path].forward)))
        stack.enter_context(failures_not_logged())
        traced = trace(
            model, [call], (known.run.training,), required=True, failing=True, decided=known.run.decisions,
            extent=NOTHING,
        )  # fmt: skip
    nodes, marks = traced.runs[0].nodes, dict[int, str]()
    for one in traced.runs[0].calls:
        if one.module in paths and isinstance(one.result, Ref) and one.end > one.first:
            if nodes[one.end - 1].operator is aten.clone.default:
                marks[one.end - 1] = one.module
    left = [place for place in range(len(nodes)) if place not in marks]
    if [nodes[place].operator for place in left] != [node.operator for node in known.run.nodes]:
        return {}
    before = {place: number for number, place in enumerate(left)}
    readers: dict[str, list[tuple[int, int]]] = {path: [] for path in marks.values()}
    made = {nodes[place].outputs[0]: path for place, path in marks.items()}
    for place in left:
        for position, number in enumerate(nodes[place].inputs()):
            if number in made:
                readers[made[number]].append((before[place], position))
    for number in traced.runs[0].outputs:
        if number in made:
            readers[made[number]].append((-1, 0))
    return {path: found[0] for path, found in readers.items() if len(found) == 1}


def _copied(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        result = forward(*args, **kwargs)
        return result.clone() if isinstance(result, torch.Tensor) else result

    return run
