"""Infer the constraints of modules that no forward pass reached from siblings that were reached: from experts that got
tokens, those of an expert that got none.

An unreached module reads and produces dimensions that the rest of the network may lose. Where two or more siblings
agree on the units of a dimension, and these units live outside of them too (the width of what all experts read), the
same holds for the unreached module. Where they disagree, the dimension is pinned. Units of a sibling's own (the width
inside an expert) say nothing about others; there the unreached module stays whole.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from niwaki.core.counts import IntArray
from niwaki.core.names import module_at
from niwaki.core.numbers import Attribute, Combination, Count, Equation, Expression, leaves
from niwaki.core.objects import class_attribute
from niwaki.core.paths import part
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.solve.components import Components, solve
from niwaki.trace.graph import Graph, Origin

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class _Family:
    """An unreached module (or bare parameter), its reached siblings, and the names of the tensors inside."""

    unseen: str
    siblings: tuple[str, ...]
    inside: tuple[str, ...]


def infer_from_siblings(model: torch.nn.Module, graph: Graph, constraints: Constraints) -> None:
    """Add to ``constraints`` what follows for unreached modules from their siblings."""
    tensors = {value.name: value.number for value in graph.values if value.origin in (Origin.PARAMETER, Origin.BUFFER)}
    unseen = {value.name for value in graph.unseen}
    if not unseen:
        return
    families = _families(graph, tensors, unseen)
    constraints.inferred.update(tensors[family.unseen + name] for family in families for name in family.inside)
    if families:
        _Understanding(model, graph, constraints, tensors, families).apply()


def _families(graph: Graph, tensors: Mapping[str, int], unseen: set[str]) -> list[_Family]:
    """Find the largest unreached modules, each with the modules that have the same tensors and whose name differs only
    in a number."""
    everything: Counter[str] = Counter()
    missing: Counter[str] = Counter()
    for name, number in tensors.items():
        if graph.values[number].origin is Origin.PARAMETER:
            for prefix in _prefixes(name):
                everything[prefix] += 1
                missing[prefix] += name in unseen
    whole = {next(prefix for prefix in _prefixes(name) if missing[prefix] == everything[prefix]) for name in unseen}
    wanted = {_kind(prefix) for prefix in whole} - {None}
    alike: dict[tuple[str, str] | None, list[str]] = {kind: [] for kind in wanted}
    for prefix in everything:
        if missing[prefix] == 0 and _kind(prefix) in wanted:
            alike[_kind(prefix)].append(prefix)
    inside: dict[str, list[tuple[str, tuple[int, ...]]]] = {p: [] for p in (*whole, *itertools.chain(*alike.values()))}
    for name, number in tensors.items():
        for prefix in _prefixes(name):
            if prefix in inside:
                inside[prefix].append((name.removeprefix(prefix), graph.values[number].shape))
    families = []
    for prefix in sorted(whole):
        siblings = tuple(other for other in alike.get(_kind(prefix), ()) if inside[other] == inside[prefix])
        if siblings:
            families.append(_Family(prefix, siblings, tuple(name for name, _ in inside[prefix])))
    return families


def _prefixes(name: str) -> Iterator[str]:
    """``a``, ``a.b``, ``a.b.weight`` for ``a.b.weight``."""
    parts = name.split(".")
    return (".".join(parts[: i + 1]) for i in range(len(parts)))


def _kind(path: str) -> tuple[str, str] | None:
    """The path of a module's parent, and the module's name without its number; None if it has no number."""
    parent, _, name = path.rpartition(".")
    pattern = _NUMBER.sub("#", name)
    return (parent, pattern) if pattern != name else None


class _Understanding:
    """One pass over all families."""

    def __init__(
        self,
        model: torch.nn.Module,
        graph: Graph,
        constraints: Constraints,
        tensors: Mapping[str, int],
        families: list[_Family],
    ) -> None:
        self._model, self._graph, self._constraints, self._tensors = model, graph, constraints, tensors
        self._families = families
        self._solution: Components = solve(constraints)
        self._child = {path: i + 1 for i, path in enumerate({s: None for f in families for s in f.siblings})}
        self._owner = self._owners()
        self._marked = constraints.marked()

    def apply(self) -> None:
        for family in self._families:
            for name in family.inside:
                number = self._tensors[family.unseen + name]
                for dim in range(len(self._graph.values[number].shape)):
                    self._dimension(family, name, dim)
        self._numbers()

    def _ids(self, name: str, dim: int) -> IntArray:
        first, size = self._constraints.ids_of[self._tensors[name], dim]
        return np.arange(first, first + size)

    def _rows(self, ids: IntArray) -> IntArray:
        return self._solution.canonical(ids[:, None])

    def _owners(self) -> IntArray:
        """For each component, the number of the only sibling that it lives in; 0 if it lives elsewhere too."""
        low = np.full(self._solution.size, len(self._child) + 1)
        high = np.zeros(self._solution.size, dtype=np.int64)
        for name in self._tensors:
            child = next((self._child[prefix] for prefix in _prefixes(name) if prefix in self._child), 0)
            for dim in range(len(self._graph.values[self._tensors[name]].shape)):
                components = self._rows(self._ids(name, dim)).reshape(-1)
                np.minimum.at(low, components, child)
                np.maximum.at(high, components, child)
        return np.where(low == high, high, 0)

    def _dimension(self, family: _Family, name: str, dim: int) -> None:
        ours = self._ids(family.unseen + name, dim)
        theirs = [self._ids(sibling + name, dim) for sibling in family.siblings]
        rows = [self._rows(ids) for ids in theirs]
        free = [row[row != 0] for row in rows]
        if all((self._owner[components] > 0).all() for components in free):
            return  # nothing can be removed, or only what is a sibling's own
        same = all(row.shape == rows[0].shape and bool((row == rows[0]).all()) for row in rows)
        if same and len(rows) > 1 and _classes(self._model, family.unseen) == _classes(self._model, family.siblings[0]):
            why = self._constraints.reason(f"it is tied to {family.siblings[0]}, which is like it", None)
            self._constraints.equal.append((ours[:, None], theirs[0][:, None], why))
            self._constraints.understood.add((self._tensors[family.unseen + name], dim))
            for mark, of_ids in self._marked.items():
                if of_ids[theirs[0]].any():
                    self._constraints.marks[mark].append(ours)
            return
        why = self._constraints.reason(
            f"no forward pass reached {family.unseen}, which may use the same units; give an example call that does",
            None,
        )
        for ids in theirs:
            self._constraints.pinned.append((ids, why))

    def _numbers(self) -> None:
        """Repeat the equations of the first sibling for the numbers of the unreached module. Where a number outside of
        the siblings has to follow a sibling's own units, these are pinned: the unreached module keeps all of its own,
        and would contradict the number."""
        first: dict[str, list[str]] = {}
        for family in self._families:
            first.setdefault(family.siblings[0], []).append(family.unseen)
        paths = {number: path for path, number in self._child.items()}
        why = self._constraints.reason("a number that follows it is read by modules that no forward pass reached", None)
        for claim in list(self._constraints.sizes):
            attributes = [leaf for leaf in leaves(claim.expression) if isinstance(leaf, Attribute)]
            if not attributes:
                continue
            axes = self._claimed(claim)
            own = {paths[number] for number in self._siblings(axes)}
            homes = [next((p for p in _prefixes(leaf.module) if p in self._child), "") for leaf in attributes]
            if own:
                if any(home not in own for home in homes):
                    self._pin(axes, why)
            elif homes[0] in first and set(homes) == {homes[0]}:
                for unseen in first[homes[0]]:
                    self._follow(claim, axes, homes[0], unseen)

    def _follow(self, claim: Equation[Axis], axes: list[Axis], sibling: str, unseen: str) -> None:
        """Repeat the equation ``claim`` of ``sibling`` for ``unseen`` if their numbers are equal now; else pin its
        axes."""
        moved = _moved(claim.expression, sibling, unseen)
        numbers = [leaf for leaf in leaves(moved) if isinstance(leaf, Attribute)]
        if all(_value(self._model, leaf) == leaf.value for leaf in numbers):
            self._constraints.sizes.append(Equation(moved, claim.axis, claim.what, claim.location))
            return
        text = f"{numbers[0]} differs from the same number of {sibling}, and no forward pass reached it"
        self._pin(axes, self._constraints.reason(text, claim.location))

    def _claimed(self, claim: Equation[Axis]) -> list[Axis]:
        """The axes that an equation depends on."""
        axes = [] if claim.axis is None else [claim.axis]
        for leaf in leaves(claim.expression):
            if isinstance(leaf, Count) and isinstance(leaf.axis, tuple):
                counted = self._constraints.labels[leaf.axis[0]]
                axes += [] if counted is None else [counted.axes[leaf.axis[1]]]
        return [axis for axis in axes if axis.free]

    def _siblings(self, axes: list[Axis]) -> set[int]:
        """The numbers of the siblings that have units of their own on some axes."""
        rows = [self._solution.canonical(axis.ids).reshape(-1) for axis in axes]
        return {int(number) for row in rows for number in np.unique(self._owner[row[row != 0]]) if number}

    def _pin(self, axes: list[Axis], why: int) -> None:
        self._constraints.pinned += [(axis.ids.reshape(-1), why) for axis in axes]


def _classes(model: torch.nn.Module, path: str) -> list[tuple[str, type]]:
    try:
        return [(name, type(part)) for name, part in module_at(model, path).named_modules()]
    except AttributeError:  # a bare parameter
        return []


def _value(model: torch.nn.Module, attribute: Attribute) -> int | None:
    module = module_at(model, attribute.module)
    value = vars(module).get(attribute.name, class_attribute(type(module), attribute.name))
    try:
        for step in attribute.where:
            value = part(value, step)
    except LookupError:
        return None
    return value if isinstance(value, int) else None


def _moved(expression: Expression, old: str, new: str) -> Expression:
    """Replace the attributes of module ``old`` in an expression by those of ``new``."""
    if isinstance(expression, Combination):
        left, right = _moved(expression.left, old, new), _moved(expression.right, old, new)
        return Combination(expression.symbol, left, right, expression.value)
    if isinstance(expression, Attribute) and (expression.module == old or expression.module.startswith(f"{old}.")):
        path = new + expression.module.removeprefix(old)
        return Attribute(path, expression.name, expression.where, expression.value)
    return expression
