"""Attributes that hold the number of a layer, such as its place in a cache of keys and values.

Nobody declares them. An attribute numbers the entries of a list of modules if it is 0, 1, 2, ... in those that have it,
or if it is the place in the list, and if no operator is given it: then what the network computes does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from niwaki.core.numbers import Attribute, Combination, Expression, Literal, leaves
from niwaki.trace.graph import Graph

_LEAST = 2
_SETTINGS = (type(None), bool, int, float, str)


@dataclass(frozen=True, slots=True)
class Numbered:
    """The attribute ``name`` of one module in each of some entries of a list: their places in the list, their paths,
    and their classes and settings. ``ranked``: it counts those entries only."""

    name: str
    places: tuple[int, ...]
    paths: tuple[str, ...]
    kinds: tuple[object, ...]
    ranked: bool

    def values(self, living: Callable[[str], bool], place_of: Mapping[int, int]) -> dict[tuple[str, str], int]:
        """The values that change where only some modules live; ``place_of``: the new places of entries that stay.

        Modules of one kind take the first numbers of what had that kind: a cache may hold other things for the next
        kind, and asks the first of a kind how long a sequence is."""
        stay = [(one, place) for one, place in enumerate(self.places) if place in place_of]
        number = {one: rank if self.ranked else place_of[place] for rank, (one, place) in enumerate(stay)}
        free: dict[object, list[int]] = {}
        for one, _ in stay:
            free.setdefault(self.kinds[one], []).append(number[one])
        taken = {kind: iter(sorted(numbers)) for kind, numbers in free.items()}
        found: dict[tuple[str, str], int] = {}
        for one, place in stay:
            if living(self.paths[one]):
                old, new = one if self.ranked else place, next(taken[self.kinds[one]])
                if new != old:
                    found[self.paths[one], self.name] = new
        return found


def numbered(modules: Mapping[str, nn.Module], graph: Graph) -> dict[str, list[Numbered]]:
    """All attributes that number layers, by the path of the list of modules."""
    read = _Read.of(graph)
    found: dict[str, list[Numbered]] = {}
    for path, container in modules.items():
        if isinstance(container, (nn.ModuleList, nn.Sequential)) and len(container._modules) >= _LEAST:
            here = list(_of_list(path, container, read))
            if here:
                found[path] = here
    return found


def _of_list(path: str, container: nn.Module, read: _Read) -> list[Numbered]:
    held: dict[tuple[str, str], list[tuple[int, str, nn.Module, int]]] = {}
    for place, (key, entry) in enumerate(container._modules.items()):
        if entry is None:
            continue
        prefix = f"{path}.{key}" if path else key
        for inner, module in entry.named_modules():
            whole = f"{prefix}.{inner}" if inner else prefix
            for name, value in module.__dict__.items():
                if type(value) is int:
                    held.setdefault((inner, name), []).append((place, whole, module, value))
    found = []
    for (_, name), holders in held.items():
        places, paths, modules, values = zip(*holders, strict=True)
        ranked = values == tuple(range(len(values)))
        if len(values) < _LEAST or not (ranked or values == places):
            continue
        if read.as_number_only(paths, name):
            numbers = _equal(modules, values)
            kinds = tuple(_kind(module, numbers) for module in modules)
            found.append(Numbered(name, places, paths, kinds, ranked))
    return found


def _equal(modules: Sequence[nn.Module], values: Sequence[int]) -> frozenset[str]:
    """The names of attributes that have these values, one in each module."""
    return frozenset(
        name
        for name in modules[0].__dict__
        if all(
            type(found := module.__dict__.get(name)) is int and found == value
            for module, value in zip(modules, values, strict=True)
        )
    )


def _kind(module: nn.Module, but: Collection[str]) -> object:
    """What tells a module from others that are numbered with it: its class, and its settings but some."""
    plain = ((name, value) for name, value in module.__dict__.items() if name not in but and name != "training")
    return type(module), tuple((name, value) for name, value in plain if isinstance(value, _SETTINGS))


@dataclass(frozen=True, slots=True)
class _Read:
    """What becomes of attributes beside being stored: ``given`` to operators or mixed with other numbers, or
    ``compared``: where, and what the outcome is said of."""

    given: set[tuple[str, str]]
    compared: dict[tuple[str, str], dict[tuple[str, int], set[object]]]

    @classmethod
    def of(cls, graph: Graph) -> _Read:
        """All attributes that a run read."""
        read = cls(set(), {})
        for run in graph.runs:
            for frozen in run.frozen:
                told = _comparison(frozen.expression)
                if told is None:
                    read.given.update(_attributes(frozen.expression))
                else:
                    attribute, outcome = told
                    line = frozen.location.file, frozen.location.line
                    lines = read.compared.setdefault((attribute.module, attribute.name), {})
                    lines.setdefault(line, set()).add(outcome)
            for node in run.nodes:
                for number in node.call.numbers:
                    read.given.update(_attributes(number))
        return read

    def as_number_only(self, paths: Sequence[str], name: str) -> bool:
        """Whether the attribute ``name`` of these modules is no more than a number: no operator is given it, and
        comparisons come out the same for all (as in a table with an entry for each)."""
        if not self.given.isdisjoint((path, name) for path in paths):
            return False
        first, *others = (self.compared.get((path, name), {}) for path in paths)
        return all(other == first for other in others)


def _comparison(expression: Expression) -> tuple[Attribute, object] | None:
    """An attribute that is compared with a plain number, and the outcome: equal to it (whatever the number is), or on
    one side of it."""
    if not isinstance(expression, Combination):
        return None
    sides = expression.left, expression.right
    attribute = next((side for side in sides if isinstance(side, Attribute)), None)
    plain = next((side for side in sides if isinstance(side, Literal)), None)
    if attribute is None or plain is None:
        return None
    if expression.symbol == "-" and expression.value == 0:
        return attribute, "equal"
    if expression.symbol in ("<", "<=", ">", ">="):
        return attribute, (expression.symbol, plain.value, expression.value)
    return None


def _attributes(expression: Expression) -> Iterator[tuple[str, str]]:
    for leaf in leaves(expression):
        if isinstance(leaf, Attribute):
            yield leaf.module, leaf.name
