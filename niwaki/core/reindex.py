"""Renumber a search space after units were removed: the same groups, ties, numbers and costs, over the kept units.

Nothing is traced again, and no new units are found, even where `niwaki.search_space` would find some in the smaller
network (the positions inside a head, once a single head is left). A group with one remaining unit remains a group,
which cannot lose it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from niwaki.core.counts import BoolArray, FloatArray, IntArray
from niwaki.core.edits import ReplacingEdit
from niwaki.core.names import named_buffers, named_parameters
from niwaki.core.numbers import (
    Attribute,
    Combination,
    Count,
    Equation,
    Expression,
    Numbers,
    evaluate,
)
from niwaki.core.plan import Plan, TensorShape, smaller_shapes
from niwaki.core.repairs import Factor, Repairs, ScalarRule, TensorRule, ratio
from niwaki.core.space import Group, SearchSpace, Tie, check_space
from niwaki.core.tensor_dims import Slice, TensorDim
from niwaki.errors import PlanError


def reindex(
    space: SearchSpace, plan: Plan, model: torch.nn.Module | None = None, *, shrunk: bool = True
) -> SearchSpace:
    """The search space of the network cut by ``plan``, without running it again.

    Args:
        space: the space that ``plan`` was made from.
        plan: the plan of the cut.
        model: the smaller network, as `niwaki.cut` returned it; without it the model of ``space`` itself, which
            `niwaki.shrink` has made smaller.
        shrunk: False if the model has not been made smaller yet.

    Raises:
        PlanError: the plan does not belong to ``space``; ``model`` is not what the plan leaves; units of a group
            overlap with removed units and have lost unequal numbers of positions; or the plan erases a structure.
            Analyse the small network again then.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> rest = niwaki.reindex(space, plan, niwaki.cut(net, plan))
        >>> [(group.name, group.units) for group in rest.groups]
        [('0', 4)]
    """
    check_space(space)
    model = space.model if model is None else model
    keep = space.keep_of(plan)
    for group in space.groups:
        if group.structure is not None and not keep[group.numbers].any():
            raise PlanError(
                f"The plan erases {space.structures[group.structure].name!r}, and which structures can be erased "
                "beside it is known of the dense network only. Analyse the small network again with "
                "niwaki.search_space."
            )
    for edit in plan.module_edits:
        if isinstance(edit, ReplacingEdit):
            raise PlanError(
                f"The plan puts another layer in the place of {edit.module!r}, which this search space knows nothing "
                "of. Analyse the small network again with niwaki.search_space."
            )
    here = {name: tuple(tensor.shape) for name, tensor in (*named_parameters(model), *named_buffers(model))}
    shapes = smaller_shapes(plan)
    for shape in shapes:
        if shrunk and here.get(shape.name) != shape.shape:
            raise PlanError(
                f"The model is not the one cut by this plan: {shape.name!r} should have the shape {list(shape.shape)}, "
                f"but has {list(here.get(shape.name, ()))}. Shrink the model by this plan first (niwaki.shrink), or "
                "pass the network that niwaki.cut returned."
            )
    return _Reindexing(space, keep).space(model, shapes)


@dataclass(frozen=True, slots=True, eq=False)
class _Positions:
    """One dimension after the cut: the units of its positions, and the new index of each old position (-1: removed)."""

    units: IntArray  # [n, K]
    moved: IntArray  # [old n]


class _Reindexing:
    """Maps old unit numbers and positions to new ones."""

    def __init__(self, space: SearchSpace, keep: BoolArray) -> None:
        self._old, self._keep = space, keep
        self._left = int(keep.sum())
        self._before = np.append(0, keep.cumsum())  # [num_units + 1]: the number of kept units before each
        self._number = np.append(np.where(keep, self._before[:-1], -1), self._left)  # with the sentinel
        self._counts = space.cost_model.counts(keep.astype(np.float64))
        self._known: dict[int, _Positions] = {}
        self._indices: dict[tuple[int, int, int], IntArray] = {}

    def space(self, model: torch.nn.Module, shapes: tuple[TensorShape, ...]) -> SearchSpace:
        old = self._old
        dims = {id(dim): replace(dim, units=self._positions(dim.units).units) for dim in old.dims}
        return replace(
            old,
            model=model,
            groups=tuple(self._group(group, dims) for group in old.groups),
            dims=tuple(dims.values()),
            coverage=_coverage(dims.values(), self._left, {s.name: s.shape for s in shapes}, model),
            shapes=shapes,
            cost_model=replace(old.cost_model, counts=old.cost_model.counts.renumber(self._keep)),
            numbers=_numbers(old.numbers, self._counts),
            ties=tuple(self._tie(tie) for tie in old.ties),
            repairs=_repairs(old.repairs, self._counts),
        )

    def _positions(self, units: IntArray) -> _Positions:
        """The new positions of a dimension; tied dimensions share one array before and after."""
        known = self._known.get(id(units))
        if known is None:
            numbers = self._number[units]
            stays = (numbers >= 0).all(axis=1)
            moved = np.where(stays, stays.cumsum() - 1, -1)
            known = self._known[id(units)] = _Positions(numbers[stays], moved)
        return known

    def _group(self, group: Group, dims: Mapping[int, TensorDim]) -> Group:
        """Renumber a group; ``dims`` maps the identity of old dimensions to the new ones."""
        first, end = int(self._before[group.first]), int(self._before[group.first + group.units])
        slices = tuple(Slice(dims[id(piece.whole)], self._index(group, piece)) for piece in group.slices)
        return replace(group, first=first, units=end - first, slices=slices)

    def _index(self, group: Group, piece: Slice) -> IntArray:
        key = (group.first, id(piece.whole.units), id(piece.index))
        if key not in self._indices:
            moved = self._positions(piece.whole.units).moved[piece.index[self._keep[group.numbers]]]
            stays = moved >= 0
            width = stays.sum(axis=1)
            if (width != width[0]).any():
                raise PlanError(
                    f"The units of the group {group.name!r} overlap with removed units and lose between "
                    f"{int((~stays).sum(axis=1).min())} and {int((~stays).sum(axis=1).max())} of their positions of "
                    f"{piece.tensor!r}: they are no longer alike. Analyse the small network again with "
                    "niwaki.search_space."
                )
            self._indices[key] = moved[stays].reshape(len(moved), -1)
        return self._indices[key]

    def _tie(self, tie: Tie) -> Tie:
        group = self._old.groups[tie.groups[0]]
        lost = group.units - int(self._keep[group.numbers].sum())
        return replace(tie, most=tie.most - lost // tie.steps[0])


def _numbers(numbers: Numbers, counts: FloatArray) -> Numbers:
    """Replace the numbers in the equations by their values after the cut."""
    values, _ = numbers.solve(counts)

    def now(expression: Expression) -> Expression:
        if isinstance(expression, Attribute):
            return replace(expression, value=values.get(expression, expression.value))
        if isinstance(expression, Count):
            assert isinstance(expression.axis, int)
            return Count(expression.axis, round(float(counts[expression.axis])))
        if isinstance(expression, Combination):
            value = evaluate(expression, values, counts)
            value = expression.value if value is None else value
            return Combination(expression.symbol, now(expression.left), now(expression.right), value)
        return expression

    def attribute(old: Attribute) -> Attribute:
        return replace(old, value=values.get(old, old.value))

    equations = (Equation(now(e.expression), e.axis, e.what, e.location) for e in numbers.equations)
    return Numbers(tuple(equations), {attribute(old): index for old, index in numbers.deciding.items()})


def _repairs(repairs: Repairs, counts: FloatArray) -> Repairs:
    """Rebase the repairs on the sizes after the cut."""

    def now(factors: Sequence[Factor]) -> tuple[Factor, ...]:
        return tuple(replace(factor, size=round(float(counts[factor.axis]))) for factor in factors)

    tensors = (TensorRule(rule.tensor, rule.shift, now(rule.factors)) for rule in repairs.tensors)
    scalars = []
    for rule in repairs.scalars:
        times = ratio(rule.factors, counts)
        changed = rule.scalar if times == 1 else replace(rule.scalar, value=rule.scalar.value * times, epsilon=False)
        scalars.append(ScalarRule(changed, now(rule.factors)))
    return Repairs(tuple(tensors), tuple(scalars))


def _coverage(
    dims: Iterable[TensorDim], sentinel: int, shapes: dict[str, tuple[int, ...]], model: torch.nn.Module
) -> float:
    """The share of parameter entries that lie in a unit along at least one dimension."""
    outside = {name: 1.0 for name, _ in named_parameters(model)}
    for dim in dims:
        if dim.parameter:
            free = np.asarray((dim.units < sentinel).any(axis=1))
            outside[dim.tensor] *= 1 - float(free.mean()) if free.size else 1.0
    sizes = {name: math.prod(shapes[name]) for name in outside}
    return sum(sizes[name] * (1 - share) for name, share in outside.items()) / max(sum(sizes.values()), 1)
