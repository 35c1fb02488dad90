"""Update sizes that modules remember for other methods than ``forward``, such as one that merges branches before
deployment, or one that draws noise.

No run shows what such a number means. Where modules of one class with different sizes agree on the dimension whose
length it is, an equation makes it follow. Where it merely equals a size that may change, and a method of its class
reads it, a note names it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import FunctionType

import torch
from torch import nn

from niwaki.core.location import Location
from niwaki.core.metadata import SIZES
from niwaki.core.names import module_at, named_modules
from niwaki.core.numbers import Attribute, Equation, Numbers, leaves
from niwaki.core.paths import Where, parts
from niwaki.core.space import BoolArray
from niwaki.program.module import Program
from niwaki.rules.constraints import Constraints
from niwaki.solve.reading import reader_of, reader_of_child
from niwaki.trace.graph import Graph

_COMMON = 3  # numbers up to this are mostly kernel sizes, strides or colours
_DEEP = 3  # a number may be about a module so many levels further inside
_NAMED = 4
_TUPLE = -1
_INTERNALS = frozenset(nn.Module().__dict__)
_OPAQUE = (bool, float, str, bytes, type(None), nn.Module, torch.Tensor, FunctionType, partial)

Dim = tuple[str, int]  # a parameter, by its name within the module, and a dimension


@dataclass(frozen=True, slots=True)
class Unread:
    """``equations``: for each attribute that is the length of an axis, the equation that decides it. ``notes``: which
    numbers may be wrong after a cut."""

    equations: tuple[tuple[Attribute, Equation[int]], ...] = ()
    notes: tuple[str, ...] = ()

    def joined(self, numbers: Numbers) -> Numbers:
        """Add these equations to ``numbers``."""
        first = len(numbers.equations)
        deciding = {attribute: first + place for place, (attribute, _) in enumerate(self.equations)}
        return Numbers(
            (*numbers.equations, *(equation for _, equation in self.equations)), {**numbers.deciding, **deciding}
        )


@dataclass(slots=True, eq=False)
class _Number:
    """One number of one module, and the dimensions of its parameters that have this length."""

    attribute: Attribute
    kind: type
    dims: Mapping[Dim, int]  # with their axis numbers
    shared: int  # the identity of the object that holds it; 0 for the module itself, or `_TUPLE`

    def within(self, level: int) -> _Number:
        """The same number, with only the parameters that are at most ``level`` levels inside."""
        near = {dim: axis for dim, axis in self.dims.items() if dim[0].count(".") <= level}
        return replace(self, dims=near)

    def changes(self, varies: BoolArray) -> bool:
        """Whether it may be wrong after a cut."""
        return any(varies[axis] for axis in self.dims.values())


def unread(
    graph: Graph,
    constraints: Constraints,
    model: nn.Module,
    lengths: Mapping[Dim, int],
    varies: BoolArray,
    looked_after: Sequence[object],
) -> Unread:
    """Find equations and notes for the numbers of modules in ``model`` that no run read.

    ``lengths``: the axis number of each dimension of each parameter. ``varies`` [axes]: which axes may get shorter.
    ``looked_after``: objects whose numbers an integration updates after a cut.
    """
    if isinstance(model, Program):  # it has no methods of its own
        return Unread()
    claims = (claim.expression for claim in constraints.sizes)
    frozen = (one.expression for run in graph.runs for one in run.frozen)
    read = (leaf for one in (*claims, *frozen) for leaf in leaves(one) if isinstance(leaf, Attribute))
    read_at = {_key(attribute) for attribute in read}
    ignored = {id(settings) for settings in looked_after}
    certain = graph.tracked - read_at  # runs may have read others unnoticed
    found = [number for number in _numbers(model, lengths, ignored) if _key(number.attribute) in certain]
    alike: defaultdict[tuple[object, ...], list[_Number]] = defaultdict(list)
    for number in found:
        alike[number.kind, number.attribute.name, number.attribute.where, number.shared].append(number)
    equations, stale = [], []
    for numbers in alike.values():
        meant: dict[Attribute, int] = {}
        for level in range(1, _DEEP + 1):  # near dimensions decide first
            within = [number.within(level) for number in numbers if number.attribute not in meant]
            meant |= {number.attribute: axis for some in _similar(within) for number, axis in _agreed(some)}
        for attribute, axis in meant.items():
            where = Location("a number that no run reads", 0, attribute.module)
            equations.append((attribute, Equation(attribute, axis, "a size that a module remembers", where)))
        left = [number.attribute for number in numbers if number.attribute not in meant and number.changes(varies)]
        reader = _reader(model, numbers[0].kind, left[0]) if left else None
        if reader is not None:
            stale.append((left[0], reader, len(left) - 1))
    return Unread(tuple(equations), tuple(_note(stale)))


def _reader(model: nn.Module, kind: type, attribute: Attribute) -> str | None:
    """Find a method that reads a number: of its own class, or of a module around it."""
    found = reader_of(kind, attribute.name)
    names = attribute.module.split(".") if attribute.module else []
    for depth in reversed(range(len(names))):
        if found is None:
            around = type(module_at(model, ".".join(names[:depth])))
            found = reader_of_child(around, names[depth], attribute.name)
    return found


def _similar(numbers: Sequence[_Number]) -> list[list[_Number]]:
    """Split numbers into sets that may be the length of the same dimension: all together if they have a dimension in
    common, else those with exactly the same dimensions (blocks with and without a depth-wise layer)."""
    if not numbers or set.intersection(*(set(number.dims) for number in numbers)):
        return [list(numbers)] if numbers else []
    parts: defaultdict[frozenset[Dim], list[_Number]] = defaultdict(list)
    for number in numbers:
        parts[frozenset(number.dims)].append(number)
    return list(parts.values())


def _agreed(numbers: Sequence[_Number]) -> Iterator[tuple[_Number, int]]:
    """Yield the axis whose length each number is, if numbers of different sizes agree on the dimension."""
    common = set.intersection(*(set(number.dims) for number in numbers))
    axes = [{number.dims[dim] for dim in common} for number in numbers]
    sizes = {number.attribute.value for number in numbers}
    if len(sizes) > 1 and not numbers[0].shared and all(len(one) == 1 for one in axes):
        yield from ((number, one.pop()) for number, one in zip(numbers, axes, strict=True))


def _key(attribute: Attribute) -> tuple[str, str, Where]:
    return attribute.module, attribute.name, attribute.where


def _numbers(model: nn.Module, lengths: Mapping[Dim, int], ignored: set[int]) -> Iterator[_Number]:
    """Yield the numbers of modules, and those in shared objects once. Numbers that `SIZES` updates are left out."""
    seen: set[int] = set(ignored)
    for path, module in named_modules(model):
        if type(module).__module__.startswith("torch."):
            continue
        prefix = f"{path}." if path else ""
        by_length: defaultdict[int, dict[Dim, int]] = defaultdict(dict)
        deep = _DEEP if path else 1  # somewhere in the whole network there is a layer of almost any size
        inside = ((f"{name}.", child) for name, child in named_modules(module) if name and name.count(".") < deep)
        for child, own in (("", module), *inside):
            for name, parameter in own._parameters.items():
                for dim, size in enumerate(() if parameter is None else parameter.shape):
                    axis = lengths.get((f"{prefix}{child}{name}", dim))
                    if axis is not None and size > _COMMON:
                        by_length[size][f"{child}{name}", dim] = axis
        table = {size.name for kind, sizes in SIZES.items() if isinstance(module, kind) for size in sizes}
        for name, where, value, shared in _held(module, seen):
            if value in by_length and name not in table:
                yield _Number(Attribute(path, name, where, value), type(module), by_length[value], shared)


def _held(module: nn.Module, seen: set[int]) -> Iterator[tuple[str, Where, int, int]]:
    """Yield the whole numbers that a module holds itself, or in a container or plain object."""
    for name, value in module.__dict__.items():
        if name in _INTERNALS:
            continue
        if type(value) is int:
            yield name, (), value, 0
        elif not isinstance(value, _OPAQUE) and id(value) not in seen:
            held = [(step, item) for step, item in parts(value) if type(item) is int]
            # Whether equal tuples of several modules are one object is up to Python, so each counts for its module.
            shared = _TUPLE if isinstance(value, tuple) else id(value)
            if held and shared != _TUPLE:
                seen.add(shared)
            yield from ((name, (step,), item, shared) for step, item in held)


def _note(stale: Sequence[tuple[Attribute, str, int]]) -> Iterator[str]:
    if stale:
        named = [
            f"{one} is {one.value}, read by {reader}" + f" (and so for {more} like it)" * (more > 0)
            for one, reader, more in stale[:_NAMED]
        ]
        rest = f"; and {len(stale) - _NAMED} more" if len(stale) > _NAMED else ""
        yield (
            f"These numbers equal a size that the layers beside them may lose: {'; '.join(named)}{rest}. No run shows "
            "what they mean, so a cut does not change them. If a number is that size, set it after the cut."
        )
