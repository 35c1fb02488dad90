"""What is left to train of a search space whose network has lost structures, among other units, in mid-training.

Which structures can be erased beside those is known of the dense network only, so nothing can be chosen from such a
space; `niwaki.reindex` refuses it. But the units that are left, and the weights that die with structures, are known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import NoReturn, final

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.edits import Edit
from niwaki.core.numbers import Numbers
from niwaki.core.plan import Plan, smaller_shapes
from niwaki.core.renaming import Renaming
from niwaki.core.repairs import Repairs
from niwaki.core.space import SearchSpace
from niwaki.core.structures import Erasures, ErasureTrial, Structure
from niwaki.core.tensor_dims import slices_by_group
from niwaki.errors import PlanError


def left_to_train(space: SearchSpace, plan: Plan) -> SearchSpace:
    """The units of ``space`` that stay after ``plan``, in their order, on the tensors as they are called then.

    Raises:
        PlanError: units overlap with what is removed, so that they are no longer alike.
    """
    keep, names = space.keep_of(plan), Renaming.of(plan)
    shapes = {shape.name: shape for shape in smaller_shapes(plan)}
    before = np.append(0, keep.cumsum())
    number = np.append(np.where(keep, before[:-1], -1), before[-1])
    known: dict[int, IntArray] = {}  # by the identity of the array, which tied dimensions share
    dims = []
    for dim in space.dims:
        name = names.after(dim.tensor)
        if name in shapes:
            if id(dim.units) not in known:
                units = number[dim.units]
                known[id(dim.units)] = units[(units >= 0).all(axis=1)]
            dims.append(replace(dim, tensor=name, units=known[id(dim.units)]))
    groups = [group for group in space.groups if keep[group.numbers].any()]
    first = [int(before[group.first]) for group in groups]
    starts = np.array([*first, before[-1]], np.int64)
    try:
        slices = slices_by_group(dims, starts)
    except ValueError as cause:
        raise PlanError(
            "Units that are left overlap with units that are removed, so that they are no longer alike. Cut at the end "
            "of training instead (niwaki.cut)."
        ) from cause
    rows = zip(groups, first, np.diff(starts).tolist(), slices, strict=True)
    return replace(
        space,
        groups=tuple(replace(group, first=at, units=units, slices=own) for group, at, units, own in rows),
        dims=tuple(dims),
        shapes=tuple(shapes.values()),
        cost_model=replace(space.cost_model, counts=space.cost_model.counts.renumber(keep)),
        numbers=Numbers((), {}),
        ties=(),
        repairs=Repairs(),
        erasures=None if space.erasures is None else _Left.of(space.erasures, names, shapes),
    )


@final
@dataclass(frozen=True, slots=True)
class _Left(Erasures):
    """The structures of the dense network under their numbers there, with the parameters that they have now."""

    now: tuple[Structure, ...]

    @classmethod
    def of(cls, dense: Erasures, names: Renaming, shapes: Collection[str]) -> _Left:
        def named(parameters: Collection[str]) -> tuple[str, ...]:
            found = (names.after(name) for name in parameters)
            return tuple(name for name in found if name is not None and name in shapes)

        return cls(
            tuple(
                replace(one, parameters=named(one.parameters), producers=named(one.producers)) for one in dense.listed
            )
        )

    @property
    def listed(self) -> tuple[Structure, ...]:
        return self.now

    @property
    def gates_run(self) -> bool:
        return True

    def trial(self) -> ErasureTrial:
        _refuse()

    def why_not(self, erased: Collection[int]) -> str | None:
        _refuse()

    def gone(self, erased: Collection[int]) -> frozenset[str]:
        _refuse()

    def edits(self, erased: Collection[int]) -> tuple[Edit, ...]:
        _refuse()

    def together(self, number: int) -> tuple[int, ...]:
        _refuse()

    def blocks(self, worth: Mapping[int, float]) -> list[tuple[int, ...]]:
        _refuse()


def _refuse() -> NoReturn:
    raise PlanError(
        "Structures have left this network, and which others can be erased beside them is known of the dense network "
        "only. Choose from its search space, or analyse the small network again with niwaki.search_space."
    )
