"""What has to stand where a module was, so that the code around it lives on: zeros in the form of what it returned."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

from niwaki.core.absent import (
    Container,
    Fixed,
    Given,
    PlainValue,
    Result,
    Size,
    SizeOfArgument,
    SizeOfTensor,
    Steps,
    SumOfTensors,
    TimesTensor,
    Zeros,
)
from niwaki.erasing.alike import Alike, Key
from niwaki.erasing.flow import writes
from niwaki.erasing.lengths import Lengths
from niwaki.erasing.living import around
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.trace.graph import Graph, ModuleCall, Origin, Ref, Run
from niwaki.trace.module_calls import Argument

_HOMES = 4  # tensors that a size is read from: the first may be erased later


class NoResult(Exception):
    """What a module returns cannot be told for other inputs."""


@dataclass(frozen=True, slots=True)
class Missing:
    """What is not there any more: ``parameters`` and ``modules`` by name, and values of which nothing is left along a
    dimension. ``fixed``: values that are as wide as they were, since nothing is left that tells how wide they are now;
    ``follows``: those that are as wide as something that the module is given. `Returned.result` fills both.
    ``bypassed``: results of layers, of which what these are given takes the place. ``recorded``: all sizes are those of
    the record, which is enough for inputs of these shapes."""

    parameters: frozenset[str]
    modules: frozenset[str]
    empty: Collection[tuple[int, int]] = ()
    fixed: set[tuple[int, int]] = field(default_factory=set)
    follows: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)
    bypassed: Mapping[int, int] = field(default_factory=dict)
    recorded: bool = False


@final
class Returned:
    """Says what modules return, from the record of their calls.

    Args:
        graph: the record.
        constraints: what the rules said of it.
        inside: the names of parameters that may be erased.
        inner: whether inner factors of products, such as positions in heads, are units.
    """

    def __init__(self, graph: Graph, constraints: Constraints, inside: Collection[str], inner: bool) -> None:
        self._inner = inner
        self._graph, self._labels = graph, constraints.labels
        self._alike = Alike(constraints)
        self._homes: dict[Key, list[tuple[str, int]]] = {}
        parameters = [value for value in graph.values if value.origin is Origin.PARAMETER]
        for value in sorted(parameters, key=lambda value: value.name in inside):
            label = self._labels[value.number]
            for dim, axis in enumerate(label.axes if label is not None else ()):
                if axis.free:
                    self._homes.setdefault(self._alike.key(axis), []).append((value.name, dim))
        self._shapes = {value.name: value.shape for value in parameters}
        self._used: dict[int, _Used] = {}
        self._lengths: dict[int, Lengths] = {}

    def result(self, run: Run, call: ModuleCall, missing: Missing, zero: bool = False) -> Result:
        """What ``call`` returned. ``zero``: it is one tensor, of which zeros take the place although it was given.

        Raises:
            NoResult: that cannot be told for other inputs.
        """
        if zero:
            return self._zeros(call.result.value, run, call, missing)
        return self._of(call.result, run, call, missing)

    def _of(self, part: Any, run: Run, call: ModuleCall, missing: Missing) -> Result:
        if isinstance(part, Ref):
            used, root = self._used_in(run), self._graph.values[part.value].root
            made_here = any(call.first <= place < call.end for place in used.written.get(root, ()))
            handed_on = missing.bypassed.get(part.value, part.value)
            for steps, number in call.tensors.items():
                same = missing.bypassed.get(number, number) == handed_on
                if same and (handed_on != part.value or not made_here):
                    return Given(steps)
            try:
                return self._zeros(part.value, run, call, missing)
            except NoResult:
                readers = {run.nodes[place].location.module for place in used.read.get(part.value, ())}
                if part is call.result or any(missing.modules.isdisjoint(around(module)) for module in readers):
                    raise
                return PlainValue(None)
        if isinstance(part, Argument):
            return Given(part.steps)
        if isinstance(part, dict):
            return Container("dict", tuple(self._of(item, run, call, missing) for item in part.values()), tuple(part))
        if type(part) in (tuple, list):  # a named tuple has names that a plain one lacks
            kind = "tuple" if isinstance(part, tuple) else "list"
            return Container(kind, tuple(self._of(item, run, call, missing) for item in part))
        if isinstance(part, (type(None), bool, int, float, str)):
            return PlainValue(part)
        raise NoResult("it returns something else than tensors, plain values, tuples, lists and dictionaries")

    def _zeros(self, number: int, run: Run, call: ModuleCall, missing: Missing) -> Zeros:
        made, lengths = self._graph.values[number], self._lengths_in(run, call)
        first: str | None = None
        for steps, given in call.tensors.items():
            value = self._graph.values[given]
            if not value.dtype.is_floating_point:
                if made.dtype.is_floating_point:
                    return Zeros(steps, None, written=False)
                continue
            sizes = [self._size(number, dim, steps, given, lengths, missing) for dim in range(len(made.shape))]
            if all(size is not None for size in sizes) and made.dtype == value.dtype:
                written = self._is_written(number, run, call)
                return Zeros(steps, tuple(size for size in sizes if size is not None), written)
            odd = next((dim for dim, size in enumerate(sizes) if size is None), 0)
            first = (
                first or f"the size {made.shape[odd]} of dimension {odd} of what it returns is not a size of any input"
            )
        raise NoResult(first or "it is given no tensor that tells the size of what it returns")

    def _size(self, number: int, dim: int, steps: Steps, given: int, lengths: Lengths, missing: Missing) -> Size | None:
        """The size of one dimension of value ``number``: as in what the module is given, if that is tied to it; that of
        a parameter which is tied to it; or whatever the inputs have there, such as the length of a sequence."""
        if (number, dim) in missing.empty:
            return Fixed(0)
        if missing.recorded:
            return Fixed(self._graph.values[number].shape[dim])
        made, source = self._graph.values[number].shape, self._graph.values[given].shape
        label, other = self._labels[number], self._labels[given]
        here = len(made) == len(source)
        axis = None if label is None else label.axes[dim]
        if axis is not None and axis.free:
            key = self._alike.key(axis)
            if here and made[dim] == source[dim] and other is not None and other.axes[dim].free:
                if all(key) and self._alike.key(other.axes[dim]) == key:
                    missing.follows[number, dim] = given, dim
                    return SizeOfArgument(steps, dim)
            homes = self._homes_of(key, made[dim])
            living = self._living(homes, missing.parameters)
            if living is not None:
                return living
            parts = [
                self._living(self._homes_of(part, part[0][0][2]), missing.parameters)
                for part in self._alike.in_a_row(key)
            ]
            if parts and all(part is not None for part in parts):
                return SumOfTensors(tuple(part for part in parts if part is not None))
            times = self._times(axis, missing.parameters)
            if times is not None:
                return times
            if homes:
                if not self._alike.stays(axis):
                    missing.fixed.add((number, dim))
                return Fixed(made[dim])
        kept = here and source[dim] == made[dim] and not lengths.changes(dim - len(made))
        found = None if kept and lengths.arguments == 1 else lengths.of(number, dim)
        if found is None and kept:
            found = SizeOfArgument(steps, dim)
        return found or (Fixed(1) if made[dim] == 1 else None)

    def _times(self, axis: Axis, gone: Collection[str]) -> TimesTensor | None:
        """The size of positions in heads, where a parameter tells how many heads there are. Nothing else has the
        positions in one: then there are always as many, unless inner factors are units."""
        product = None if self._inner else self._alike.outer(axis)
        if product is None:
            return None
        outer, count, inner = product
        times = len(axis.ids) // count
        living = self._living(self._homes_of(outer, count), gone)
        return None if living is None or self._homes.get(inner) else TimesTensor(living, times)

    def stays(self, number: int, dim: int) -> bool:
        """Whether a dimension of a value never gets narrower."""
        label = self._labels[number]
        return label is None or self._alike.stays(label.axes[dim])

    def _homes_of(self, key: Key, size: int) -> list[tuple[str, int]]:
        """The dimensions of parameters that are tied to what has this ``key``."""
        return [(name, dim) for name, dim in self._homes.get(key, ()) if all(key) and self._shapes[name][dim] == size]

    def _living(self, homes: Sequence[tuple[str, int]], gone: Collection[str]) -> SizeOfTensor | None:
        living = [home for home in homes if home[0] not in gone]
        return SizeOfTensor(tuple(living[:_HOMES])) if living else None

    def _is_written(self, number: int, run: Run, call: ModuleCall) -> bool:
        """Whether an operator after the call writes to the memory of a value."""
        root = self._graph.values[number].root
        return any(place >= call.end for place in self._used_in(run).written.get(root, ()))

    def _lengths_in(self, run: Run, call: ModuleCall) -> Lengths:
        if id(call) not in self._lengths:
            self._lengths[id(call)] = Lengths(self._graph, run, call)
        return self._lengths[id(call)]

    def _used_in(self, run: Run) -> _Used:
        if id(run) not in self._used:
            used = self._used[id(run)] = _Used({}, {})
            for place, node in enumerate(run.nodes):
                for number in node.inputs():
                    used.read.setdefault(number, []).append(place)
                for number in writes(node):
                    used.written.setdefault(self._graph.values[number].root, []).append(place)
        return self._used[id(run)]


@dataclass(frozen=True, slots=True)
class _Used:
    """The operators that read each value, and those that write to each memory."""

    read: dict[int, list[int]]
    written: dict[int, list[int]]


def same_result(results: Iterable[Result]) -> Result:
    """The one result of at least one call; zeros have memory if any of them needs it.

    Raises:
        NoResult: the calls returned different things.
    """
    first, *others = results
    for other in others:
        first = _joined(first, other)
    return first


def _joined(one: Result, other: Result) -> Result:
    if isinstance(one, Zeros) and isinstance(other, Zeros):
        if (one.given, one.sizes) == (other.given, other.sizes):
            return Zeros(one.given, one.sizes, one.written or other.written)
    elif isinstance(one, Container) and isinstance(other, Container):
        if (one.kind, one.keys, len(one.items)) == (other.kind, other.keys, len(other.items)):
            items = (_joined(left, right) for left, right in zip(one.items, other.items, strict=True))
            return Container(one.kind, tuple(items), one.keys)
    elif one == other:
        return one
    raise NoResult("its calls return different things")
