"""Calls that were made before. What a rule says is a function of the operator, its arguments and the labels of its
tensors, so that a second run of the same layers, in train mode say, has little to add."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import torch

from niwaki.core.counts import IntArray
from niwaki.core.numbers import Combination, Count, Expression
from niwaki.core.repairs import Scalar
from niwaki.rules.axis import Axis
from niwaki.rules.registry import Label, Scale
from niwaki.solve.constraints import Constraints
from niwaki.trace.graph import Graph, Node, Ref

_COMPARED = frozenset(
    {type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format}
)


@dataclass(frozen=True, slots=True, eq=False)
class CachedCall:
    """What labelling a call gave: labels, all axes, the numbers among the arguments that a cut may change, the float
    attributes that it may repair, the places of the numbers of the Python call that the rule has understood."""

    labels: list[Label]
    axes: list[Axis]
    resized: set[int]
    rescaled: dict[float, Scalar | tuple[Scale, ...]]
    understood: set[int]


class Calls:
    """Remembers what was said of calls, in the order in which they were made: of several calls with one key the same is
    said, each time with ids of its own, and their order tells which of these go on to be used where."""

    def __init__(self, graph: Graph, constraints: Constraints) -> None:
        self._keys: dict[Hashable, int] = {}
        self._said: dict[int, list[CachedCall]] = {}
        self._recalled: Counter[int] = Counter()
        self._graph, self._constraints = graph, constraints
        # By identity, which is quick to compare: a copy costs time, no more. What is looked up is kept alive.
        self._labels: dict[int, tuple[Label, int]] = {}
        self._ids: dict[int, IntArray] = {}
        self._unlike: dict[Hashable, int] = {}

    def begin(self) -> None:
        """Another run."""
        self._recalled.clear()

    def recall(self, key: int | None) -> CachedCall | None:
        """What was said of such a call in a run before; None if there was none."""
        known = self._said.get(key) if key is not None else None
        if key is None or known is None:
            return None
        self._recalled[key] += 1
        return known[min(self._recalled[key], len(known)) - 1]

    def remember(self, key: int | None, said: CachedCall) -> None:
        """Note what was said of a call."""
        if key is not None:
            self._said.setdefault(key, []).append(said)

    def key(self, node: Node, unused: bool, discarded: tuple[bool, ...]) -> int | None:
        """Equal for calls of which the same will be said, once more; None where that cannot be told."""
        values = self._graph.values
        if node.call.powers:  # which frozen numbers these release is said of each run
            return None
        key = (
            id(node.operator),  # there is one object of each, whose hash takes its time
            node.location,
            unused,
            discarded,
            tuple([self._argument(argument) for argument in node.args]),
            tuple([(name, self._argument(argument)) for name, argument in node.kwargs.items()]),
            tuple([(values[number].shape, values[number].dtype) for number in node.outputs if number is not None]),
            tuple([self._number(number) for number in node.call.numbers]),
            node.call.scalars,
        )
        try:
            return self._keys.setdefault(key, len(self._keys))
        except TypeError:  # unhashable
            return None

    def _argument(self, argument: Any) -> Hashable:
        if isinstance(argument, Ref):
            label = self._constraints.labels[argument.value]
            assert label is not None
            return self._label(label)
        if isinstance(argument, tuple):
            return tuple([self._argument(item) for item in argument])
        kind = type(argument)
        return kind, argument if kind in _COMPARED else id(argument)  # packed weights can be compared with nothing

    def _label(self, label: Label) -> Hashable:
        known = self._labels.get(id(label))
        if known is None:
            scale = tuple((self._axis(factor.axis), factor.power, factor.why) for factor in label.scale)
            axes = tuple(map(self._axis, label.axes))
            places = None if label.index_of is None else self._axis(label.index_of)
            known_of_entries = label.zero, label.nonnegative, label.dtype, scale, label.source, places
            key: Hashable = (axes, label.weight, known_of_entries)
            known = self._labels[id(label)] = label, self._unlike.setdefault(key, len(self._unlike))
        return known[1]

    def _number(self, number: Expression) -> Hashable:
        """An expression with axes in the place of dimensions of tensors."""
        if isinstance(number, Combination):
            return number.symbol, self._number(number.left), self._number(number.right)
        if isinstance(number, Count) and isinstance(number.axis, tuple):
            value, dim = number.axis
            label = self._constraints.labels[value]
            assert label is not None
            return Count, self._axis(label.axes[dim])
        return number

    def _axis(self, axis: Axis) -> Hashable:
        """Fixed axes of one size and reason are alike; any other is itself alone."""
        if not axis.free:
            return axis.size, axis.why
        self._ids[id(axis.ids)] = axis.ids
        return id(axis.ids)
