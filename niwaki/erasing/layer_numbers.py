"""Attributes that hold the number of a layer, such as its place in a cache of keys and values.

Nobody declares them. An attribute numbers the entries of a list of modules if it is 0, 1, 2, ... in those that have it,
or if it is the place in the list, and if no operator is given it: then what the network computes does not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from niwaki.core.numbers import Attribute, Expression, leaves
from niwaki.trace.graph import Graph

_LEAST = 2


@dataclass(frozen=True, slots=True)
class Numbered:
    """The attribute ``name`` of one module in each of some entries of a list: their places in the list, and their
    paths. ``ranked``: it counts those entries only."""

    name: str
    places: tuple[int, ...]
    paths: tuple[str, ...]
    ranked: bool

    def values(self, living: Callable[[str], bool], place_of: Mapping[int, int]) -> dict[tuple[str, str], int]:
        """The values that change where only some modules live; ``place_of``: the new places of entries that stay."""
        found: dict[tuple[str, str], int] = {}
        rank = 0
        for before, (place, path) in enumerate(zip(self.places, self.paths, strict=True)):
            if living(path):
                old, new = (before, rank) if self.ranked else (place, place_of[place])
                if new != old:
                    found[path, self.name] = new
                rank += 1
        return found


def numbered(modules: Mapping[str, nn.Module], graph: Graph) -> dict[str, list[Numbered]]:
    """All attributes that number layers, by the path of the list of modules."""
    read = {(leaf.module, leaf.name) for leaf in _read(graph)}
    found: dict[str, list[Numbered]] = {}
    for path, container in modules.items():
        if isinstance(container, (nn.ModuleList, nn.Sequential)) and len(container._modules) >= _LEAST:
            here = list(_of_list(path, container, read))
            if here:
                found[path] = here
    return found


def _of_list(path: str, container: nn.Module, read: set[tuple[str, str]]) -> list[Numbered]:
    held: dict[tuple[str, str], list[tuple[int, str, int]]] = {}
    for place, (key, entry) in enumerate(container._modules.items()):
        if entry is None:
            continue
        prefix = f"{path}.{key}" if path else key
        for inner, module in entry.named_modules():
            whole = f"{prefix}.{inner}" if inner else prefix
            for name, value in module.__dict__.items():
                if type(value) is int:
                    held.setdefault((inner, name), []).append((place, whole, value))
    found = []
    for (_, name), holders in held.items():
        places, paths, values = zip(*holders, strict=True)
        ranked = values == tuple(range(len(values)))
        if len(values) < _LEAST or not (ranked or values == places):
            continue
        if read.isdisjoint((one, name) for one in paths):
            found.append(Numbered(name, places, paths, ranked))
    return found


def _read(graph: Graph) -> list[Attribute]:
    """The attributes that operators were given, or that became part of what the network computes."""
    expressions: list[Expression] = [frozen.expression for run in graph.runs for frozen in run.frozen]
    expressions += [number for run in graph.runs for node in run.nodes for number in node.call.numbers]
    return [leaf for one in expressions for leaf in leaves(one) if isinstance(leaf, Attribute)]
