"""Reuse what rules said of the same call in an earlier run.

What a rule says is a function of the operator, its arguments and the labels of its tensors. A second run of the same
layers, in train mode for example, mostly repeats the first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from niwaki.core.counts import IntArray
from niwaki.core.numbers import Combination, Count, Expression
from niwaki.core.repairs import Scalar
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.rules.label import Label, Scale
from niwaki.trace.graph import Graph, Node, Ref

_COMPARED = frozenset(
    {type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format}
)


@dataclass(frozen=True, slots=True, eq=False)
class CachedCall:
    """What labelling a call produced: the labels of its results, the axes of all its tensors, the whole numbers among
    its arguments that a cut may change (``resized``), the floats that it may change (``rescaled``), and the indices of
    the Python call's numbers that the rule has explained (``understood``)."""

    labels: list[Label]
    axes: list[Axis]
    resized: set[int]
    rescaled: dict[float, Scalar | tuple[Scale, ...]]
    understood: set[int]


class Calls:
    """Remembers what was said of calls, in their order. Several calls with one key get the same constraints, each with
    ids of its own; their order tells which ids belong to which call of a later run."""

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
        """Start another run."""
        self._recalled.clear()

    def recall(self, key: int | None) -> CachedCall | None:
        """What was said of such a call in an earlier run; None if there was no such call."""
        known = self._said.get(key) if key is not None else None
        if key is None or known is None:
            return None
        self._recalled[key] += 1
        return known[min(self._recalled[key], len(known)) - 1]

    def remember(self, key: int | None, said: CachedCall) -> None:
        """Remember what was said of a call."""
        if key is not None:
            self._said.setdefault(key, []).append(said)

    def key(self, node: Node, unused: bool, discarded: tuple[bool, ...], structures: Mapping[int, int]) -> int | None:
        """A key that is equal for calls of which rules say the same; None if that is unknown."""
        values = self._graph.values
        if node.call.powers:  # they release frozen numbers, which each run has of its own
            return None
        key = (
            id(node.operator),  # there is one object of each, and its own hash is slow
            node.location,
            unused,
            discarded,
            tuple(structures.items()),
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
        return kind, argument if kind in _COMPARED else id(argument)  # packed weights cannot be compared

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
        """Replace the dimensions of tensors in an expression by their axes."""
        if isinstance(number, Combination):
            return number.symbol, self._number(number.left), self._number(number.right)
        if isinstance(number, Count) and isinstance(number.axis, tuple):
            value, dim = number.axis
            label = self._constraints.labels[value]
            assert label is not None
            return Count, self._axis(label.axes[dim])
        return number

    def _axis(self, axis: Axis) -> Hashable:
        """A key that is equal for fixed axes of one size and reason, and for axes with the same array of ids."""
        if not axis.free:
            return axis.size, axis.why
        self._ids[id(axis.ids)] = axis.ids
        return id(axis.ids)
