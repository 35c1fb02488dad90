"""Compare two traces of one model: the operators that they call, and the tensors that these get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from niwaki.core.location import Location
from niwaki.trace.graph import Graph, Node, Origin, Ref, Run

_GIVEN = (Origin.PARAMETER, Origin.BUFFER)
_START = (Location("the start of the model", 0),)  # the location of runs without operators
_PLAIN = frozenset({type(None), bool, int, float, complex, str})


@dataclass(frozen=True, slots=True)
class Departure:
    """The first difference of a trace from another: ``index`` is the number of the run, and of the operator in it;
    ``locations`` are the source lines of both."""

    index: tuple[int, int]
    locations: tuple[Location, ...]

    @property
    def location(self) -> Location:
        """The line of the other trace, or of this one if the other has ended."""
        return self.locations[-1]


def departure(graph: Graph, other: Graph) -> Departure | None:
    """The first difference of two traces, or None: in an operator, its arguments, the shapes of its results, the
    outputs, or an error.

    Example:
        >>> import torch
        >>> from niwaki.trace.tracer import trace
        >>> relu, tanh = (trace(kind(), [((torch.ones(2),), {})], (False,)) for kind in (torch.nn.ReLU, torch.nn.Tanh))
        >>> departure(relu, relu) is None
        True
        >>> departure(relu, tanh).index
        (0, 0)
    """
    tensors = _Tensors(graph, other)
    for number, (run, instead) in enumerate(zip(graph.runs, other.runs, strict=False)):
        index = _difference(run, instead, tensors)
        if index is not None:
            return Departure((number, index), _locations(run, instead, index))
    if len(graph.runs) != len(other.runs):  # code reads the mode in one of them only
        number = min(len(graph.runs), len(other.runs))
        longer = graph.runs if len(graph.runs) > number else other.runs
        return Departure((number, 0), tuple(node.location for node in longer[number].nodes[:1]) or _START)
    return None


def _locations(run: Run, other: Run, index: int) -> tuple[Location, ...]:
    """The lines of two runs at operator number ``index``, or at the last one of a run that has ended."""
    return tuple(one.nodes[min(index, len(one.nodes) - 1)].location for one in (run, other) if one.nodes) or _START


def _difference(run: Run, other: Run, tensors: _Tensors) -> int | None:
    """The number of the first operator that differs in two runs; the number of operators if only their ends differ."""
    for index, (node, instead) in enumerate(zip(run.nodes, other.nodes, strict=False)):
        if not tensors.alike(node, instead):
            return index
    ended = min(len(run.nodes), len(other.nodes))
    same = (
        len(run.nodes) == len(other.nodes)
        and run.training is other.training
        and run.both is other.both
        and type(run.error) is type(other.error)
        and tensors.same(run.outputs, other.outputs)
    )
    return None if same else ended


class _Tensors:
    """Pairs the values of two traces that are the same tensor: parameters, buffers and inputs from the beginning, the
    others when both traces reach them in the same place."""

    def __init__(self, graph: Graph, other: Graph) -> None:
        self._values, self._others = graph.values, other.values
        given = [[v.number for v in one.values if v.origin in _GIVEN] for one in (graph, other)]
        inputs = [[v.number for v in one.values if v.origin is Origin.INPUT] for one in (graph, other)]
        known = [*zip(*given, strict=True), *zip(*inputs, strict=False)]
        self._there = dict(known)
        self._back = {there: here for here, there in known}

    def alike(self, node: Node, other: Node) -> bool:
        """Whether two calls are the same."""
        return (
            node.operator is other.operator
            and self._match(node.args, other.args)
            and (node.kwargs.keys() == other.kwargs.keys())
            and all(self._match(given, other.kwargs[name]) for name, given in node.kwargs.items())
            and self.same(node.outputs, other.outputs)
        )

    def same(self, values: Sequence[int | None], others: Sequence[int | None]) -> bool:
        """Whether values are the same tensors, of the same shapes."""
        return len(values) == len(others) and all(map(self._is, values, others))

    def _is(self, value: int | None, other: int | None) -> bool:
        if value is None or other is None:
            return value is other
        there, back = self._there.setdefault(value, other), self._back.setdefault(other, value)
        return there == other and back == value and self._values[value].shape == self._others[other].shape

    def _match(self, given: Any, other: Any) -> bool:
        """Whether arguments are the same: tensors, plain numbers and lists of these are compared, of other objects only
        the class."""
        if isinstance(given, Ref):
            return isinstance(other, Ref) and self._is(given.value, other.value)
        if isinstance(given, tuple):
            return isinstance(other, tuple) and len(given) == len(other) and all(map(self._match, given, other))
        if type(given) is not type(other):
            return False
        return type(given) not in _PLAIN or bool(given == other or given != given)
