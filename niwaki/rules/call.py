"""One operator call as its rule sees it, and what the rule says of it, kept in `Constraints`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch._ops import OpOverload

from niwaki.core.counts import IntArray
from niwaki.core.numbers import Count, Equation, Expression, Literal
from niwaki.core.repairs import Scalar
from niwaki.rules.axis import Axis, fixed, part, product_rows
from niwaki.rules.constraints import Constraints, MacsTerm, Mark
from niwaki.rules.label import Label, Scale
from niwaki.trace.graph import Graph, Node, PythonCall, Ref


class Refused(Exception):
    """Raised by a rule that cannot follow this call: everything the operator touches is pinned with the reason."""


@cache
def _defaults(operator: torch._ops.OpOverload) -> Mapping[str, Any]:
    """The arguments of an operator in their order, with their defaults (None if an argument has no default)."""
    schema = operator._schema.arguments
    return {known.name: known.default_value if known.has_default_value() else None for known in schema}


class Call:
    """One operator call, as a rule sees it: ``call["name"]`` is an argument by its name in the operator's schema, with
    tensors as `Label`. What the rule says of it is written into `Constraints`.

    ``listener``: asked before each constraint whether it counts; without one, all do.
    """

    operator: OpOverload
    python: PythonCall
    arguments: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]  # of the outputs
    dtypes: tuple[torch.dtype, ...]
    trains: bool  # whether a run in eval mode stands for train mode too
    unused: bool  # whether nothing reads the outputs
    discarded: tuple[bool, ...]  # of each output: whether nothing reads it
    listener: Callable[[], bool] | None = None

    def __init__(
        self,
        constraints: Constraints,
        graph: Graph,
        node: Node,
        counting: bool,
        trains: bool,
        unused: bool = False,
        discarded: tuple[bool, ...] = (),
        structures: Mapping[int, int] | None = None,
    ) -> None:
        self._constraints, self._node, self._counting = constraints, node, counting
        self._structures = structures or {}
        self.trains, self.unused, self.discarded = trains, unused, discarded
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

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def fresh(self, size: int) -> Axis:
        """A new axis of ``size`` positions that nothing constrains yet."""
        return Axis(self._constraints.allocate(size))

    def fixed(self, size: int, why: str = "") -> Axis:
        """An axis that can never shrink, because ``why``."""
        return fixed(size, self._reason(why) if why else 0)

    def equate(self, left: Axis, right: Axis) -> None:
        """Position i of ``left`` is removed exactly when position i of ``right`` is."""
        if not (left.free or right.free) or left.same_as(right) or self._ignored():
            return
        if not left.free or not right.free:
            free, other = (left, right) if left.free else (right, left)
            self._constraints.pinned.append(
                (free.ids.reshape(-1), other.why or self._reason("it meets a fixed dimension"))
            )
            return
        self._constraints.equal.append((left.ids, right.ids, self._reason("it is tied to a pinned dimension")))

    def equate_rows(self, left: IntArray, right: IntArray) -> None:
        """As `equate`, for bare rows of ids [n, K]."""
        if self._ignored():
            return
        self._constraints.equal.append((left, right, self._reason("it is tied to a pinned dimension")))

    def pin(self, axis: Axis, why: str) -> None:
        """No position of ``axis`` may be removed, because ``why``."""
        if axis.free and not self._ignored():
            self._constraints.pinned.append((axis.ids.reshape(-1), self._reason(why)))

    def inexact(self, axis: Axis, why: str) -> None:
        """Removing positions of ``axis`` changes the result although their entries are zero, because ``why``: they are
        pinned, unless the user allows it."""
        if axis.free and not self._ignored() and not self.unused:
            self._constraints.mark_inexact(axis.ids.reshape(-1), self._reason(why))

    def rescales(self, number: float, how: Scalar | tuple[Scale, ...]) -> None:
        """A cut changes this float argument, ``number``: it is an attribute that is repaired, or the code computes it
        from sizes."""
        self.rescaled[number] = how

    def scale(self, axis: Axis, power: float, why: str) -> tuple[Scale, ...]:
        """The factor of a result after a cut, none if ``axis`` is fixed. Where no weight can take it up, the axis is
        `inexact`, because ``why``."""
        return (Scale(axis, power, self._reason(why)),) if axis.free else ()

    def contract(self, left: Label, left_dim: int, right: Label, right_dim: int) -> None:
        """The products over these two dimensions are summed."""
        ours, theirs = left.axes[left_dim], right.axes[right_dim]
        if (ours.free or theirs.free) and self._ignored():
            return
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
        """Report ``text`` to the user, once for the whole model."""
        self._constraints.notes[text] = None

    def consumes(self, weight: Label, dim: int, zero: bool) -> None:
        """``weight`` consumes units along ``dim``; ``zero``: whether their removed entries are zero already."""
        ids = weight.axes[dim].ids.reshape(-1)
        self._constraints.marks[Mark.CONSUMED].append(ids)
        if not zero:
            self.zeroed_by_method(weight, dim)

    def zeroed_by_method(self, weight: Label, dim: int) -> None:
        """A method has to bring entries of ``weight`` along ``dim`` to zero for removed units, whether they produce or
        consume these units: other entries depend on them (a norm runs over them) even where all inputs are zero."""
        self._constraints.marks[Mark.ZEROED_BY_METHOD].append(weight.axes[dim].ids.reshape(-1))

    def weight_norm_direction(self, weight: Label, dim: int) -> bool:
        """Entries of ``weight`` that are removed along ``dim`` keep their values in the zeroed model: they are the
        direction of a weight whose length is zero there. Returns False, and states nothing, if ``weight`` is not a
        parameter itself."""
        source = weight.source
        if source is None or source.shift or self._constraints.labels[source.value] is not weight:
            return False
        self._constraints.marks[Mark.DIRECTION].append(weight.axes[dim].ids.reshape(-1))
        self._constraints.directed_by.setdefault(source.value, set()).add((self._node.operator, dim))
        return True

    def produces(self, weight: Label, dim: int) -> None:
        """``weight`` produces units along ``dim``, also where it consumes them (a tied embedding does both)."""
        self._constraints.marks[Mark.PRODUCED].append(weight.axes[dim].ids.reshape(-1))

    def size_exprs(self, given: Sequence[int], behind: int = 0) -> list[Expression | None]:
        """The expressions of the whole numbers of one argument; None for those that torch computes. The first
        ``behind`` numbers of the Python call belong to other arguments."""
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

    def int_expr(self, given: int) -> Expression:
        """The expression of one whole number; a literal if it is not known."""
        numbers = self.python.numbers
        self.resized.add(given)
        same = [position for position, number in enumerate(numbers) if number.value == given]
        same = [position for position in same if not isinstance(numbers[position], Literal)] or same
        self.understood.update(same[-1:])
        return numbers[same[-1]] if same else Literal(given)

    def derived_by_torch(self, *names: str) -> None:
        """torch computes these whole-number arguments itself, from shapes: they may differ after a cut."""
        for name in names:
            given = self.arguments[name]
            self.resized.update(given if isinstance(given, tuple) else (given,))

    def size_of(self, argument: str, dim: int) -> Expression:
        """The number of surviving positions of a dimension of a tensor argument."""
        names = list(_defaults(self._node.operator))
        given = (*self._node.args, *[None] * len(names))[names.index(argument)]
        reference = self._node.kwargs.get(argument, given)
        assert isinstance(reference, Ref)
        return Count((reference.value, dim), self.arguments[argument].axes[dim].size)

    def size_is(self, expression: Expression | None, axis: Axis, what: str) -> None:
        """``expression`` must equal the surviving positions of ``axis``; a literal fixes the axis."""
        if expression is None or (isinstance(expression, Literal) and not axis.free):
            return
        if axis.free and self._ignored():
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
        """This call does ``times`` multiply-accumulates per combination of positions of ``axes``."""
        if self._counting:
            constant = times * math.prod(axis.size for axis in axes if not axis.free)
            number = len(self._constraints.touched)  # the index of this node
            self._constraints.macs.append(MacsTerm(constant, tuple(axis for axis in axes if axis.free), number))

    def index_of(self, label: Label) -> Axis | None:
        """The axis along which the entries of ``label`` are indices, or None. The rule that asks must handle them:
        nothing else pins that axis."""
        self.placed.append(label)
        return label.index_of if label.index_of is not None and label.index_of.free else None

    @property
    def derives_sizes(self) -> bool:
        """Whether torch computes the sizes from those of tensors: the call comes from autograd or from the body of an
        operator, not from a function that Python called."""
        return self.python.function is None

    def indexed_by(self, axis: Axis, indices: Label, why: str) -> None:
        """Positions of ``axis`` are read by the entries of ``indices``. Only indices on the same axis can follow a cut;
        without them the axis is pinned, because ``why``."""
        if axis.free and self._ignored():
            return
        places = self.index_of(indices)
        if places is not None and places.size == axis.size:
            self.equate(axis, places)
            return
        self.pin(axis, why)
        if places is not None:
            self.pin(places, f"its positions look something up in a dimension of {axis.size}, not {places.size}")

    def label(
        self,
        axes: Sequence[Axis],
        zero: Sequence[bool] | None = None,
        weight: bool = False,
        output: int = 0,
        scale: tuple[Scale, ...] = (),
    ) -> Label:
        """The label of output number ``output``."""
        flags = (False,) * len(axes) if zero is None else tuple(zero)
        return Label(tuple(axes), flags, weight, self.dtypes[output], scale)

    def opaque(self, output: int, why: str = "is not followed") -> Label:
        """The label of an output of which no position can be removed."""
        return self.label([self.fixed(size, why) for size in self.shapes[output]], output=output)

    def operand(self, position: int, axis: Axis) -> Axis:
        """The part of a join's result that its operand at ``position`` becomes: positions of ``axis``, which also go
        with the structure that makes the operand, if that may vanish."""
        if position not in self._structures:
            return axis
        absent = np.full((axis.size, 1), self._constraints.absence(self._structures[position]))
        return Axis(np.concatenate([axis.ids, absent], axis=1), axis.why)

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Part ``axis`` into a row-major product of axes of ``sizes``, with new ids where a boundary falls inside."""
        parting = part(axis, sizes)
        columns = [list(own) for own in parting.columns]
        for column, which in parting.mixed:
            new = [self.fresh(sizes[j]).ids[:, 0] for j in which]
            self.equate_rows(column[:, None], product_rows(new, sizes, which))
            for j, ids in zip(which, new, strict=True):
                columns[j].append(ids)
        return [Axis(_stack(own, size), axis.why) for own, size in zip(columns, sizes, strict=True)]

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

    def _ignored(self) -> bool:
        """Whether the listener wants to do without what is being said."""
        return self.listener is not None and not self.listener()


def _stack(columns: list[IntArray], size: int) -> IntArray:
    return np.stack(columns, axis=1) if columns else np.zeros((size, 0), dtype=np.int64)
