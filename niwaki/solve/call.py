"""Show one operator call to its rule, and write what the rule says into `Constraints`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from niwaki.core.counts import IntArray
from niwaki.core.numbers import Count, Equation, Expression, Literal
from niwaki.core.repairs import Scalar
from niwaki.rules.axis import Axis, fixed
from niwaki.rules.registry import Call, Label, Scale
from niwaki.solve.constraints import Constraints, MacsTerm, Mark
from niwaki.trace.graph import Graph, Node, Ref


@cache
def _defaults(operator: torch._ops.OpOverload) -> Mapping[str, Any]:
    """The arguments of an operator in their order, with their defaults (None if an argument has no default)."""
    schema = operator._schema.arguments
    return {known.name: known.default_value if known.has_default_value() else None for known in schema}


class GraphCall(Call):
    """One call in a graph, which writes what its rule says into `Constraints`."""

    def __init__(
        self,
        constraints: Constraints,
        graph: Graph,
        node: Node,
        counting: bool,
        trains: bool,
        unused: bool = False,
        discarded: tuple[bool, ...] = (),
    ) -> None:
        self._constraints, self._node, self._counting, self.trains, self.unused = (
            constraints,
            node,
            counting,
            trains,
            unused,
        )
        self.discarded = discarded
        self._why: dict[str, int] = {}
        self.operator, self.python = node.operator, node.call
        self.understood: set[int] = set()  # indices of the Python call's numbers
        self.resized: set[int] = set()
        self.rescaled: dict[float, Scalar | tuple[Scale, ...]] = {}
        self.placed: list[Label] = []
        outputs = [graph.values[number] for number in node.outputs if number is not None]
        self.shapes = tuple(value.shape for value in outputs)
        self.dtypes = tuple(value.dtype for value in outputs)
        self.arguments = dict(_defaults(node.operator))
        for name, given in zip(self.arguments, node.args, strict=False):
            self.arguments[name] = self._seen(given)
        for name, given in node.kwargs.items():
            self.arguments[name] = self._seen(given)

    def _seen(self, argument: Any) -> Any:
        if isinstance(argument, Ref):
            return self._constraints.labels[argument.value]
        if isinstance(argument, tuple):
            return tuple(self._seen(item) for item in argument)
        return argument

    def inputs(self) -> list[Label]:
        """All tensor arguments."""
        labels: list[Label] = []
        for argument in self.arguments.values():
            if isinstance(argument, Label):
                labels.append(argument)
            elif isinstance(argument, tuple):
                labels += [item for item in argument if isinstance(item, Label)]
        return labels

    def input_axes(self) -> list[Axis]:
        """All axes of all tensor arguments."""
        return [axis for label in self.inputs() for axis in label.axes]

    def makes_what_goes_on(self, results: Sequence[Label]) -> None:
        """A weight that gives the result one of its dimensions produces it, even if another operator reads along it."""
        for label in self.inputs():
            if label.weight:
                for dim, axis in enumerate(label.axes):
                    if axis.free and any(axis.same_as(made) for r in results if not r.weight for made in r.axes):
                        self.produces(label, dim)

    def _reason(self, text: str) -> int:
        if text not in self._why:
            self._why[text] = self._constraints.reason(text, self._node.location)
        return self._why[text]

    def fresh(self, size: int) -> Axis:
        return Axis(self._constraints.allocate(size))

    def fixed(self, size: int, why: str = "") -> Axis:
        return fixed(size, self._reason(why) if why else 0)

    def equate(self, left: Axis, right: Axis) -> None:
        if left.same_as(right) or not (left.free or right.free):
            return
        if not left.free or not right.free:
            free, other = (left, right) if left.free else (right, left)
            self._constraints.pinned.append(
                (free.ids.reshape(-1), other.why or self._reason("it meets a fixed dimension"))
            )
            return
        self._constraints.equal.append((left.ids, right.ids, self._reason("it is tied to a pinned dimension")))

    def equate_rows(self, left: IntArray, right: IntArray) -> None:
        self._constraints.equal.append((left, right, self._reason("it is tied to a pinned dimension")))

    def pin(self, axis: Axis, why: str) -> None:
        if axis.free:
            self._constraints.pinned.append((axis.ids.reshape(-1), self._reason(why)))

    def inexact(self, axis: Axis, why: str) -> None:
        if axis.free and not self.unused:
            self._constraints.mark_inexact(axis.ids.reshape(-1), self._reason(why))

    def scale(self, axis: Axis, power: float, why: str) -> tuple[Scale, ...]:
        return (Scale(axis, power, self._reason(why)),) if axis.free else ()

    def rescales(self, number: float, how: Scalar | tuple[Scale, ...]) -> None:
        self.rescaled[number] = how

    def contract(self, left: Label, left_dim: int, right: Label, right_dim: int) -> None:
        ours, theirs = left.axes[left_dim], right.axes[right_dim]
        self.equate(ours, theirs)
        if left.weight and right.weight:  # the result is a weight that both produce
            self.zeroed_by_method(left, left_dim)
            self.zeroed_by_method(right, right_dim)
        elif left.weight:
            self.consumes(left, left_dim, right.zero[right_dim])
        elif right.weight:
            self.consumes(right, right_dim, left.zero[left_dim])
        if not (left.zero[left_dim] or right.zero[right_dim]):
            why = "it is summed over, and its removed entries are not zero"
            self.inexact(ours, why)
            self.inexact(theirs, why)

    def note(self, text: str) -> None:
        self._constraints.notes[text] = None

    def consumes(self, weight: Label, dim: int, zero: bool) -> None:
        ids = weight.axes[dim].ids.reshape(-1)
        self._constraints.marks[Mark.CONSUMED].append(ids)
        if not zero:
            self.zeroed_by_method(weight, dim)

    def zeroed_by_method(self, weight: Label, dim: int) -> None:
        self._constraints.marks[Mark.ZEROED_BY_METHOD].append(weight.axes[dim].ids.reshape(-1))

    def weight_norm_direction(self, weight: Label, dim: int) -> bool:
        source = weight.source
        if source is None or source.shift or self._constraints.labels[source.value] is not weight:
            return False
        self._constraints.marks[Mark.DIRECTION].append(weight.axes[dim].ids.reshape(-1))
        self._constraints.directed_by.setdefault(source.value, set()).add((self._node.operator, dim))
        return True

    def produces(self, weight: Label, dim: int) -> None:
        self._constraints.marks[Mark.PRODUCED].append(weight.axes[dim].ids.reshape(-1))

    def size_exprs(self, given: Sequence[int], behind: int = 0) -> list[Expression | None]:
        numbers = self.python.numbers
        self.resized.update(given)
        for start in range(behind, len(numbers) - len(given) + 1):
            window = numbers[start : start + len(given)]
            if all(number.value in (size, -1) for number, size in zip(window, given, strict=True)):
                self.understood.update(range(start, start + len(given)))
                return [None if number.value == -1 else number for number in window]
        found = [
            [i for i, number in enumerate(numbers) if number.value == size and not isinstance(number, Literal)]
            for size in given
        ]
        self.understood.update(position for same in found for position in same[:1])
        return [numbers[same[0]] if same else None for same in found]

    def derived_by_torch(self, *names: str) -> None:
        for name in names:
            given = self.arguments[name]
            self.resized.update(given if isinstance(given, tuple) else (given,))

    def int_expr(self, given: int) -> Expression:
        numbers = self.python.numbers
        self.resized.add(given)
        same = [position for position, number in enumerate(numbers) if number.value == given]
        same = [position for position in same if not isinstance(numbers[position], Literal)] or same
        self.understood.update(same[-1:])
        return numbers[same[-1]] if same else Literal(given)

    def indexed_by(self, axis: Axis, indices: Label, why: str) -> None:
        places = self.index_of(indices)
        if places is not None and places.size == axis.size:
            self.equate(axis, places)
            return
        self.pin(axis, why)
        if places is not None:
            self.pin(places, f"its positions look something up in a dimension of {axis.size}, not {places.size}")

    def index_of(self, label: Label) -> Axis | None:
        self.placed.append(label)
        return label.index_of if label.index_of is not None and label.index_of.free else None

    def size_of(self, argument: str, dim: int) -> Expression:
        names = list(_defaults(self._node.operator))
        given = (*self._node.args, *[None] * len(names))[names.index(argument)]
        reference = self._node.kwargs.get(argument, given)
        assert isinstance(reference, Ref)
        return Count((reference.value, dim), self.arguments[argument].axes[dim].size)

    def size_is(self, expression: Expression | None, axis: Axis, what: str) -> None:
        if expression is None or (isinstance(expression, Literal) and not axis.free):
            return
        if isinstance(expression, Literal):
            self.pin(axis, f"{what} is written as the number {expression}")
            return
        if isinstance(expression, Count) and not axis.free and isinstance(expression.axis, tuple):
            value, dim = expression.axis
            counted = self._constraints.labels[value]
            if counted is not None and not counted.axes[dim].free:
                return
        self._constraints.sizes.append(Equation(expression, axis, what, self._node.location))

    def macs(self, times: int, *axes: Axis) -> None:
        if self._counting:
            constant = times * math.prod(axis.size for axis in axes if not axis.free)
            number = len(self._constraints.touched)  # the index of this node
            self._constraints.macs.append(MacsTerm(constant, tuple(axis for axis in axes if axis.free), number))
