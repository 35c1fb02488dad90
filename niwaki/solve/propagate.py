"""Propagate labels through the record of a run: apply the rule of every operator, from the first to the last."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from niwaki import rules
from niwaki.core.location import Location
from niwaki.core.numbers import Count, Equation, Expression, Literal, leaves
from niwaki.rules.axis import Axis, fixed
from niwaki.rules.call import Call, Refused
from niwaki.rules.constraints import Constraints, Touched
from niwaki.rules.label import Label, Source
from niwaki.rules.registry import HOMOGENEOUS, Rule
from niwaki.solve import signs
from niwaki.solve.call_cache import CachedCall, Calls
from niwaki.solve.comparisons import compared
from niwaki.solve.rescaling import Scaling
from niwaki.trace.graph import Frozen, Graph, Node, Origin, Run, Value

_Frozen = tuple[Expression, Location, str]
FindRule = Callable[[torch._ops.OpOverload], Rule | None]


def propagate(
    graph: Graph,
    find: FindRule = rules.find,
    pin_outputs: bool = True,
    allow_inexact: bool = False,
    tolerant: bool = True,
    repeats: bool = True,
    given: list[dict[int, tuple[Label | None, ...]]] | None = None,
    structures: Mapping[Node, Mapping[int, int]] | None = None,
) -> Constraints:
    """Apply ``find``'s rules to all runs of ``graph``; MACs are counted in the first.

    If ``tolerant``, a rule that fails with an error, which is a defect of niwaki, pins what its operator touches. If
    ``repeats``, a call that an earlier run made on the same labels is not labelled again, which is faster.
    ``given`` is filled, for each run, with the labels of the tensors that its operators were given, as they were then.
    ``structures``: of joins, the number of the structure that makes the operand at a position and may vanish with it.
    """
    constraints = Constraints([None] * len(graph.values), allow_inexact=allow_inexact)
    constraints.reason("nothing constrains it", None)
    fixed_by: dict[tuple[Origin, str, Location | None], int] = {}
    met = _constants_met(graph)
    for value in graph.values:
        constraints.aliases.setdefault(value.root, []).append(value.number)
        if value.origin is not Origin.COMPUTED:
            constraints.labels[value.number] = _given(constraints, value, fixed_by, met.get(value.number))
    scaling = Scaling(constraints)
    calls = Calls(graph, constraints)
    frozen: set[_Frozen] = set()
    for index, run in enumerate(graph.runs):
        used: dict[int, tuple[Node, set[int]]] = {}
        checked: dict[int, int] = {}  # keys of calls that a comparison explains, and the number each was given
        for product, comparison, claim in compared(graph, run):
            constraints.sizes.append(claim)
            checked |= {node.call.key: node.call.numbers[0].value for node in (product, comparison)}
        calls.begin()
        if given is not None:
            given.append({})
        scaling.begin()
        thrown_away = unused(graph, run) if run.error is None else set()
        read = seen(run)
        for place, node in enumerate(run.nodes):
            discarded = tuple(number not in read for number in node.outputs if number is not None)
            own = structures.get(node, {}) if structures is not None else {}
            key = calls.key(node, place in thrown_away, discarded, own) if repeats and len(graph.runs) > 1 else None
            said = calls.recall(key) if index else None
            if given is not None:
                given[-1][place] = tuple(constraints.labels[number] for number in node.inputs())
            if said is None:
                call = Call(constraints, graph, node, index == 0, run.both, place in thrown_away, discarded, own)
                labels = _apply(call, graph, node, find, scaling, tolerant)
                axes = [*call.input_axes(), *(axis for made in labels for axis in made.axes)]
                said = CachedCall(labels, axes, call.resized, call.rescaled, call.understood)
                calls.remember(key, said)
            _assign(constraints, graph, node, said.labels, scaling)
            changing = {checked[node.call.key]} if node.call.key in checked else set()
            aside = place in thrown_away and node.call.function is None
            constraints.touched.append(Touched(node, said.axes, said.resized | changing, said.rescaled, aside))
            used.setdefault(node.call.key, (node, set()))[1].update(said.understood)
        for node, understood in used.values():
            for position, number in enumerate(node.call.numbers):
                if position not in understood and not isinstance(number, Literal) and node.call.key not in checked:
                    _freeze(
                        constraints, frozen, number, node.location, "enters a computation that niwaki does not follow"
                    )
        for position, item in enumerate(run.frozen):
            if scaling.releases(position):
                continue
            _freeze(
                constraints,
                frozen,
                item.expression,
                item.location,
                _FAN_IN if _of_weights(constraints, item) else _FROZEN,
            )
        for left in outlasting(run):
            stored = constraints.labels[left]
            scaling.refuse(() if stored is None else stored.scale)
        for buffer, now in run.remade:
            _follow(constraints, constraints.labels[buffer], constraints.labels[now])
        for result in run.outputs:
            _leave(constraints, scaling, result, "an output of the model", None, pin_outputs)
        for value_number, where in run.escaped.items():
            _leave(constraints, scaling, value_number, "read by code that niwaki does not follow", where, True)
    scaling.finish()
    _hold_other_directions(constraints, graph)
    return constraints


def _follow(constraints: Constraints, buffer: Label | None, now: Label | None) -> None:
    """Tie a buffer to the tensor that replaced it in a run: another run may find that tensor in its place."""
    assert buffer is not None and now is not None
    if len(buffer.axes) != len(now.axes):
        return
    why = constraints.reason("it is tied to a pinned dimension of what replaces a buffer", None)
    for before, after in zip(buffer.axes, now.axes, strict=True):
        if before.size == after.size and before.free and after.free:
            constraints.equal.append((before.ids, after.ids, why))
        elif before.free:
            constraints.pinned.append((before.ids.reshape(-1), why))


def _leave(
    constraints: Constraints, scaling: Scaling, number: int, what: str, location: Location | None, whole: bool
) -> None:
    """Pin what leaves the network, where nothing can be repaired; ``whole`` values keep all their positions."""
    left = constraints.labels[number]
    assert left is not None
    scaling.refuse(left.scale)
    if left.index_of is not None and left.index_of.free:
        why = constraints.reason(f"{what} holds positions along it", location)
        constraints.pinned.append((left.index_of.ids.reshape(-1), why))
    if whole and any(axis.free for axis in left.axes):
        why = constraints.reason(f"it is {what}", location)
        constraints.pinned += [(axis.ids.reshape(-1), why) for axis in left.axes if axis.free]


def _constants_met(graph: Graph) -> dict[int, Location]:
    """The location of the first operator that reads each constant, by value number."""
    met: dict[int, Location] = {}
    if all(value.origin is not Origin.CONSTANT for value in graph.values):
        return met
    for run in graph.runs:
        for node in run.nodes:
            for number in node.inputs():
                if graph.values[number].origin is Origin.CONSTANT:
                    met.setdefault(number, node.location)
    return met


def _given(
    constraints: Constraints,
    value: Value,
    fixed_by: dict[tuple[Origin, str, Location | None], int],
    where: Location | None,
) -> Label:
    """Label a value that no operator made: parameters and buffers get new ids, inputs and constants are fixed."""
    if value.origin in (Origin.PARAMETER, Origin.BUFFER):
        axes = []
        for dim, size in enumerate(value.shape):
            constraints.ids_of[value.number, dim] = (constraints.ids, size)
            axes.append(Axis(constraints.allocate(size)))
        parameter = value.origin is Origin.PARAMETER
        source = Source(value.number, 0.0) if parameter else None
        return Label(tuple(axes), (parameter,) * len(axes), parameter, value.dtype, (), source)
    known = value.origin, value.name, where
    if known not in fixed_by:
        fixed_by[known] = constraints.reason(f"it meets {_named(value)}", where)
    why = fixed_by[known]
    return Label(tuple(fixed(size, why) for size in value.shape), (False,) * len(value.shape), False, value.dtype)


def _named(value: Value) -> str:
    """Name a value from which nothing can be removed."""
    if value.origin is Origin.INPUT:
        return "an input of the model"
    if not value.name:
        return "a tensor that is neither parameter nor buffer"
    return (
        f"the attribute {value.name!r}, a tensor that is neither parameter nor buffer (register_buffer lets it follow)"
    )


def _apply(call: Call, graph: Graph, node: Node, find: FindRule, scaling: Scaling, tolerant: bool) -> list[Label]:
    """Apply its rule to a call, and return the labels of its results."""
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
    return followed(call, rule, signs.follow(call, rule, scaling.follow(call, rule, labels)), call.placed)


def _hold_other_directions(constraints: Constraints, graph: Graph) -> None:
    """Pin directions of weight norms that have another use: they keep values in the zeroed model, where that use needs
    zeros."""
    for number, uses in constraints.directed_by.items():
        operators = {operator for operator, _ in uses}
        others = (node for run in graph.runs for node in run.nodes if number in node.inputs())
        other = next((node for node in others if len(uses) > 1 or node.operator not in operators), None)
        if other is not None:
            why = constraints.reason("it is the direction of a weight norm, and used otherwise too", other.location)
            for (value, _), (first, size) in constraints.ids_of.items():
                if value == number:
                    constraints.pinned.append((np.arange(first, first + size), why))


def _assign(constraints: Constraints, graph: Graph, node: Node, labels: Sequence[Label], scaling: Scaling) -> None:
    numbers = [number for number in node.outputs if number is not None]
    for number, made in zip(numbers, labels, strict=True):
        before = constraints.labels[number]
        constraints.labels[number] = made
        if before is not None:
            _written(constraints, graph, number, before, made, scaling)


_DEFECTS = (LookupError, TypeError, ValueError, AttributeError, AssertionError, ArithmeticError, RuntimeError)


def _defect(node: Node, cause: Exception) -> str:
    return (
        f"niwaki's rule for the operator {node.operator} fails here ({type(cause).__qualname__}: {cause}), which is a "
        "defect to report"
    )


def _written(
    constraints: Constraints, graph: Graph, number: int, before: Label, after: Label, scaling: Scaling
) -> None:
    """Update the other views of a value that was written in place: they can no longer rely on zeros, signs or a
    factor."""
    aliases = [alias for alias in constraints.aliases[graph.values[number].root] if alias != number]
    if any(constraints.labels[alias] is not None for alias in aliases):
        scaling.refuse((*before.scale, *after.scale))
    keeps_zeros = all(after.zero) or after.zero == before.zero == (False,) * len(before.zero)
    for alias in aliases:
        other = constraints.labels[alias]
        if other is not None and not keeps_zeros:
            other = replace(other, zero=(False,) * len(other.axes), source=None)
        if other is not None and other.nonnegative and not after.nonnegative:
            other = replace(other, nonnegative=False)
        constraints.labels[alias] = other


_FROZEN = "is part of the computed function"


_FAN_IN = "is part of the computed function (a scale by the fan-in of a weight)"


def _of_weights(constraints: Constraints, item: Frozen) -> bool:
    """Whether a number is a product of sizes of weights, and of nothing else."""
    counts = [leaf for leaf in leaves(item.expression) if isinstance(leaf, Count)]
    labels = [constraints.labels[leaf.axis[0]] for leaf in counts if isinstance(leaf.axis, tuple)]
    return bool(labels) and all(label is not None and label.weight for label in labels)


def _freeze(
    constraints: Constraints, frozen: set[_Frozen], expression: Expression, location: Location, what: str
) -> None:
    """Say once of each number that it must not change."""
    known = expression, location, what
    if known in frozen or all(isinstance(leaf, Literal) for leaf in leaves(expression)):
        return
    frozen.add(known)
    constraints.sizes.append(Equation(expression, None, f"a number that {what}", location))


_WHY = "computes with positions along it, which are renumbered when some of them are removed"


def followed(call: Call, rule: Rule | None, made: Sequence[Label], understood: Sequence[Label]) -> list[Label]:
    """Add index tracking to the labels ``made`` by a rule (None: it refused): which axis their entries are positions
    on. Where the rule does not understand positions that it is given, their axis is pinned."""
    labels = list(made)
    how = HOMOGENEOUS.get(rule) if rule is not None else None
    for name, given in _labels_in(call):
        assert given.index_of is not None
        if call.operator is torch.ops.aten._to_copy.default or (how is not None and how.whole and name in how.factors):
            labels = [replace(label, index_of=given.index_of) for label in labels]
        elif all(given is not known for known in understood):
            call.pin(given.index_of, f"{call.operator} {_WHY}")
    return labels


def _labels_in(call: Call) -> Iterator[tuple[str, Label]]:
    """Yield the arguments whose entries are positions on a free axis."""
    for name, argument in call.arguments.items():
        for item in argument if isinstance(argument, tuple) else (argument,):
            if isinstance(item, Label) and item.index_of is not None and item.index_of.free:
                yield name, item


def outlasting(run: Run) -> list[int]:
    """The values that ``run`` computed and that outlast it: its outputs, and what modules keep, such as a loss."""
    made = (number for node in run.nodes for number in node.outputs if number is not None)
    return [number for number in dict.fromkeys(made) if number not in run.ended]


def seen(run: Run) -> set[int]:
    """The values of ``run`` that an operator reads, that it returns, or that outlast it."""
    read = {number for node in run.nodes for number in node.inputs()}
    return read.union(run.outputs, outlasting(run))


def unused(graph: Graph, run: Run) -> set[int]:
    """The indices of operators in ``run`` whose results reach nothing: no output, no value that outlasts the run (in an
    attribute, where a loss may find it), no number that Python reads, no parameter, buffer or input.

    Their shapes still have to fit, but their averages need not be exact.
    """
    values = graph.values
    kept = {value.root for value in values if value.origin is not Origin.COMPUTED or value.number not in run.ended}
    kept.update(values[number].root for number in run.outputs)
    found = set()
    for place in range(len(run.nodes) - 1, -1, -1):
        node = run.nodes[place]
        made = [values[number].root for number in node.outputs if number is not None]
        if made and kept.isdisjoint(made):
            found.add(place)
        else:
            kept.update(values[number].root for number in node.inputs())
    return found
