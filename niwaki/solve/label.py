"""Run the rules over a graph and collect what they say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from niwaki import rules
from niwaki.core.counts import IntArray
from niwaki.core.location import Location
from niwaki.core.numbers import Count, Expression, Literal, leaves
from niwaki.core.repairs import Scalar
from niwaki.rules.axis import Axis, fixed
from niwaki.rules.registry import Call, Label, Refused, Rule, Scale, Source
from niwaki.solve import places
from niwaki.solve.comparisons import compared
from niwaki.solve.facts import Facts, MacsTerm, SizeClaim, Touched
from niwaki.solve.repeats import Calls, Said
from niwaki.solve.scaling import Scaling
from niwaki.trace.graph import Graph, Node, Origin, Ref, Value

FindRule = Callable[[torch._ops.OpOverload], Rule | None]


def label(
    graph: Graph,
    find: FindRule = rules.find,
    pin_outputs: bool = True,
    allow_inexact: bool = False,
    tolerant: bool = True,
    repeats: bool = True,
) -> Facts:
    """Apply ``find``'s rules to all runs of ``graph``; MACs are counted in the first.

    If ``tolerant``, a rule that fails with an error, which is a defect of niwaki, pins what its operator touches. If
    ``repeats``, a call that a run before has made already, of the same labels, is not labelled again: that is faster.
    """
    facts = Facts([None] * len(graph.values), allow_inexact=allow_inexact)
    facts.reason("nothing constrains it", None)
    fixed_by: dict[Origin, int] = {}
    for value in graph.values:
        facts.aliases.setdefault(value.root, []).append(value.number)
        if value.origin is not Origin.COMPUTED:
            facts.labels[value.number] = _given(facts, value, fixed_by)
    scaling = Scaling(facts)
    calls = Calls(graph, facts)
    frozen: set[tuple[int, int, str]] = set()
    for index, run in enumerate(graph.runs):
        used: dict[int, tuple[Node, set[int]]] = {}
        checked: dict[int, int] = {}  # calls that a comparison accounts for, and the number each was given
        for product, comparison, claim in compared(graph, run):
            facts.sizes.append(claim)
            checked |= {id(node.call): node.call.numbers[0].value for node in (product, comparison)}
        calls.begin()
        for node in run.nodes:
            key = calls.key(node) if repeats and len(graph.runs) > 1 else None
            said = calls.recall(key) if index else None
            if said is None:
                call = _Call(facts, graph, node, counting=index == 0, trains=run.both)
                labels = _apply(call, graph, node, find, scaling, tolerant)
                axes = [*call.input_axes(), *(axis for made in labels for axis in made.axes)]
                said = Said(labels, axes, call.resized, call.rescaled, call.understood)
                calls.remember(key, said)
            _assign(facts, graph, node, said.labels, scaling)
            changing = {checked[id(node.call)]} if id(node.call) in checked else set()
            facts.touched.append(Touched(node, said.axes, said.resized | changing, said.rescaled))
            used.setdefault(id(node.call), (node, set()))[1].update(said.understood)
        for node, understood in used.values():
            for position, number in enumerate(node.call.numbers):
                if position not in understood and not isinstance(number, Literal) and id(node.call) not in checked:
                    _freeze(facts, frozen, number, node.location, "enters a computation that niwaki does not follow")
        for item in run.frozen:
            _freeze(facts, frozen, item.expression, item.location, "is part of the computed function")
        for result in run.outputs:
            returned = facts.labels[result]
            assert returned is not None
            scaling.refuse(returned.scale)
            if returned.places is not None and returned.places.free:
                why = facts.reason("an output of the model holds positions along it", None)
                facts.pinned.append((returned.places.ids.reshape(-1), why))
        if pin_outputs:
            why = facts.reason("it is an output of the model", None)
            for result in run.outputs:
                output = facts.labels[result]
                assert output is not None
                for axis in output.axes:
                    if axis.free:
                        facts.pinned.append((axis.ids.reshape(-1), why))
    scaling.finish()
    return facts


def _given(facts: Facts, value: Value, fixed_by: dict[Origin, int]) -> Label:
    """Parameters and buffers get new ids; inputs and constants are fixed."""
    if value.origin in (Origin.PARAMETER, Origin.BUFFER):
        axes = []
        for dim, size in enumerate(value.shape):
            facts.places[value.number, dim] = (facts.ids, size)
            axes.append(Axis(facts.allocate(size)))
        parameter = value.origin is Origin.PARAMETER
        source = Source(value.number, 0.0) if parameter else None
        return Label(tuple(axes), (parameter,) * len(axes), parameter, value.dtype, (), source)
    if value.origin not in fixed_by:
        what = "an input of the model" if value.origin is Origin.INPUT else "a tensor that is no parameter or buffer"
        fixed_by[value.origin] = facts.reason(f"it meets {what}", None)
    why = fixed_by[value.origin]
    return Label(tuple(fixed(size, why) for size in value.shape), (False,) * len(value.shape), False, value.dtype)


def _apply(call: _Call, graph: Graph, node: Node, find: FindRule, scaling: Scaling, tolerant: bool) -> list[Label]:
    """The labels of the outputs of a call, by its rule."""
    rule = find(node.operator)
    numbers = [number for number in node.outputs if number is not None]
    try:
        if rule is None:
            raise Refused(f"niwaki has no rule for the operator {node.operator}")
        result = rule(call)
        labels = [] if result is None else [result] if isinstance(result, Label) else list(result)
        for number, made in zip(numbers, labels, strict=True):
            if made.shape != graph.values[number].shape:
                raise Refused(
                    f"the rule for {node.operator} expected the shape {made.shape}, "
                    f"but the result has {graph.values[number].shape}"
                )
    except (Refused, *_DEFECTS) as cause:
        if not isinstance(cause, Refused) and not tolerant:
            raise
        reason = str(cause) if isinstance(cause, Refused) else _defect(node, cause)
        for axis in call.input_axes():
            call.pin(axis, reason)
        labels = [call.opaque(i, reason) for i in range(len(call.shapes))]
        rule = None
        call.placed.clear()
    call.makes_what_goes_on(labels)
    return places.follow(call, rule, scaling.follow(call, rule, labels), call.placed)


def _assign(facts: Facts, graph: Graph, node: Node, labels: Sequence[Label], scaling: Scaling) -> None:
    numbers = [number for number in node.outputs if number is not None]
    for number, made in zip(numbers, labels, strict=True):
        before = facts.labels[number]
        facts.labels[number] = made
        if before is not None:
            _written(facts, graph, number, before, made, scaling)


_DEFECTS = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError)


def _defect(node: Node, cause: Exception) -> str:
    return (
        f"niwaki's rule for the operator {node.operator} fails here ({type(cause).__qualname__}: {cause}), which is a "
        "defect to report"
    )


def _written(facts: Facts, graph: Graph, number: int, before: Label, after: Label, scaling: Scaling) -> None:
    """A value was written in place. Other views of its memory may no longer rely on zeros, nor on a factor."""
    aliases = [alias for alias in facts.aliases[graph.values[number].root] if alias != number]
    if any(facts.labels[alias] is not None for alias in aliases):
        scaling.refuse((*before.scale, *after.scale))
    if all(after.zero) or after.zero == before.zero == (False,) * len(before.zero):
        return
    for alias in aliases:
        other = facts.labels[alias]
        if other is not None:
            facts.labels[alias] = replace(other, zero=(False,) * len(other.axes), source=None)


def _freeze(
    facts: Facts, frozen: set[tuple[int, int, str]], expression: Expression, location: Location, what: str
) -> None:
    """A number has to stay what it is. Attributes and lines are one object each: their like is ``frozen`` once."""
    known = id(expression), id(location), what
    if known in frozen or all(isinstance(leaf, Literal) for leaf in leaves(expression)):
        return
    frozen.add(known)
    facts.sizes.append(SizeClaim(expression, None, f"a number that {what}", location))


@cache
def _defaults(operator: torch._ops.OpOverload) -> Mapping[str, Any]:
    """The arguments of an operator in their order, with their defaults (None where there is none)."""
    schema = operator._schema.arguments
    return {known.name: known.default_value if known.has_default_value() else None for known in schema}


class _Call(Call):
    """The implementation of `Call` that writes into `Facts`."""

    def __init__(self, facts: Facts, graph: Graph, node: Node, counting: bool, trains: bool) -> None:
        self._facts, self._node, self._counting, self.trains = facts, node, counting, trains
        self._why: dict[str, int] = {}
        self.operator, self.python = node.operator, node.call
        self.understood: set[int] = set()  # positions among the numbers of the Python call
        self.resized: set[int] = set()
        self.rescaled: dict[float, Scalar] = {}
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
            return self._facts.labels[argument.value]
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
        """A weight whose dimension is one of the result's makes it, also where another operator reads along it."""
        for label in self.inputs():
            if label.weight:
                for dim, axis in enumerate(label.axes):
                    if axis.free and any(axis.same_as(made) for r in results if not r.weight for made in r.axes):
                        self.makes(label, dim)

    def _reason(self, text: str) -> int:
        if text not in self._why:
            self._why[text] = self._facts.reason(text, self._node.location)
        return self._why[text]

    def fresh(self, size: int) -> Axis:
        return Axis(self._facts.allocate(size))

    def fixed(self, size: int, why: str = "") -> Axis:
        return fixed(size, self._reason(why) if why else 0)

    def equate(self, left: Axis, right: Axis) -> None:
        if left.same_as(right) or not (left.free or right.free):
            return
        if not left.free or not right.free:
            free, other = (left, right) if left.free else (right, left)
            self._facts.pinned.append((free.ids.reshape(-1), other.why or self._reason("it meets a fixed dimension")))
            return
        self._facts.equal.append((left.ids, right.ids, self._reason("it is tied to a pinned dimension")))

    def equate_rows(self, left: IntArray, right: IntArray) -> None:
        self._facts.equal.append((left, right, self._reason("it is tied to a pinned dimension")))

    def pin(self, axis: Axis, why: str) -> None:
        if axis.free:
            self._facts.pinned.append((axis.ids.reshape(-1), self._reason(why)))

    def inexact(self, axis: Axis, why: str) -> None:
        if axis.free:
            self._facts.mark_inexact(axis.ids.reshape(-1), self._reason(why))

    def scale(self, axis: Axis, power: float, why: str) -> tuple[Scale, ...]:
        return (Scale(axis, power, self._reason(why)),) if axis.free else ()

    def rescales(self, number: float, scalar: Scalar) -> None:
        self.rescaled[number] = scalar

    def contract(self, left: Label, left_dim: int, right: Label, right_dim: int) -> None:
        ours, theirs = left.axes[left_dim], right.axes[right_dim]
        self.equate(ours, theirs)
        if left.weight and right.weight:  # both make the weight that comes of it
            self.drives(left, left_dim)
            self.drives(right, right_dim)
        elif left.weight:
            self.reads(left, left_dim, right.zero[right_dim])
        elif right.weight:
            self.reads(right, right_dim, left.zero[left_dim])
        if not (left.zero[left_dim] or right.zero[right_dim]):
            why = "it is summed over, and its removed entries are not zero"
            self.inexact(ours, why)
            self.inexact(theirs, why)

    def reads(self, weight: Label, dim: int, zero: bool) -> None:
        ids = weight.axes[dim].ids.reshape(-1)
        self._facts.reads.append(ids)
        if not zero:
            self.drives(weight, dim)

    def drives(self, weight: Label, dim: int) -> None:
        self._facts.drives.append(weight.axes[dim].ids.reshape(-1))

    def makes(self, weight: Label, dim: int) -> None:
        self._facts.makes.append(weight.axes[dim].ids.reshape(-1))

    def sizes(self, given: Sequence[int]) -> list[Expression | None]:
        numbers = self.python.numbers
        self.resized.update(given)
        for start in range(len(numbers) - len(given) + 1):
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

    def follows(self, *names: str) -> None:
        for name in names:
            given = self.arguments[name]
            self.resized.update(given if isinstance(given, tuple) else (given,))

    def number(self, given: int) -> Expression:
        numbers = self.python.numbers
        self.resized.add(given)
        same = [position for position, number in enumerate(numbers) if number.value == given]
        self.understood.update(same[-1:])
        return numbers[same[-1]] if same else Literal(given)

    def places(self, label: Label) -> Axis | None:
        self.placed.append(label)
        return label.places if label.places is not None and label.places.free else None

    def count(self, argument: str, dim: int) -> Expression:
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
            counted = self._facts.labels[value]
            if counted is not None and not counted.axes[dim].free:
                return
        self._facts.sizes.append(SizeClaim(expression, axis, what, self._node.location))

    def macs(self, times: int, *axes: Axis) -> None:
        if self._counting:
            constant = times * math.prod(axis.size for axis in axes if not axis.free)
            number = len(self._facts.touched)  # of this node, which is the next one
            self._facts.macs.append(MacsTerm(constant, tuple(axis for axis in axes if axis.free), number))
