"""The search space: everything that can be removed from a model, and why everything else cannot."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from niwaki.core.cost import Cost, CostModel
from niwaki.core.counts import FloatArray
from niwaki.core.describe import counted, describe_group, describe_space
from niwaki.core.html import html_table, space_html
from niwaki.core.location import Location
from niwaki.core.numbers import Numbers
from niwaki.core.plan import Plan, TensorShape
from niwaki.core.planning import planned
from niwaki.core.repairs import Repairs
from niwaki.core.replaced_costs import with_replacements
from niwaki.core.structures import Erasures, Structure
from niwaki.core.tensor_dims import Slice, TensorDim
from niwaki.core.union_streams import UnionStreams, why_refused, why_scored_alone
from niwaki.errors import MethodError, PlanError

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Group:
    """Similar units that run through coupled tensors, such as the 64 channels of ``layer1``.

    ``first`` is the number of its first unit among all units of the space: its units are ``first .. first+units-1``.
    ``inexact``: why removing units changes the result although they are zero; None if it does not. There are inexact
    groups only if `niwaki.search_space` was called with ``allow_inexact=True``. ``structure``: the number among the
    structures of the space, of a group whose only unit is a whole structure.
    """

    name: str
    first: int
    units: int
    slices: tuple[Slice, ...]
    inexact: str | None = None
    structure: int | None = None

    @property
    def numbers(self) -> slice:
        """The range of this group in any array over all units of the space."""
        return slice(self.first, self.first + self.units)

    def __str__(self) -> str:
        return describe_group(self)

    def __repr__(self) -> str:
        tensors = len({piece.tensor for piece in self.slices})
        return f"<group {self.name}: {counted(self.units, 'unit')} in {counted(tensors, 'tensor')}>"

    def _repr_html_(self) -> str:
        rows = [(piece.tensor, piece.dim, str(piece.role), piece.index.shape[1]) for piece in self.slices]
        title = f"{self.name}: {counted(self.units, 'unit')}"
        return html_table(
            title, ("tensor", "dimension", "role", "entries of a unit"), rows, filter(None, [self.inexact])
        )


@dataclass(frozen=True, slots=True)
class Tie:
    """Groups that lose units only together: ``steps[i]`` units of group number ``groups[i]`` at a time, at most
    ``most`` times. The two halves of a ``chunk`` lose equally many, for example. A tie of a single group limits its
    sizes: they have to stay even, or above some number."""

    groups: tuple[int, ...]
    steps: tuple[int, ...]
    most: int


@dataclass(frozen=True, slots=True)
class Pin:
    """Positions that can never be removed: how many, of which dimension of which parameter, why, and where."""

    parameter: str
    dim: int
    count: int
    reason: str
    location: Location | None

    def __str__(self) -> str:
        where = f" at {self.location}" if self.location else ""
        return f"{self.parameter} dim {self.dim} ({self.count} positions): {self.reason}{where}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class SearchSpace:
    """All groups of a model, all pins with their reasons, and the cost of any choice. Owns no weights.

    ``erasures``: what can vanish as a whole, where `niwaki.search_space` was asked for it with ``erase=True``. Every
    structure that can is a group of one unit, after all others.
    """

    model: torch.nn.Module
    groups: tuple[Group, ...]
    dims: tuple[TensorDim, ...]
    pins: tuple[Pin, ...]
    coverage: float
    shapes: tuple[TensorShape, ...]
    cost_model: CostModel
    numbers: Numbers
    ties: tuple[Tie, ...] = ()
    repairs: Repairs = Repairs()
    notes: tuple[str, ...] = ()
    erasures: Erasures | None = None

    @property
    def structures(self) -> tuple[Structure, ...]:
        """What could vanish as a whole, erasable or not; none without ``erase=True``."""
        return () if self.erasures is None else self.erasures.listed

    @property
    def width_groups(self) -> tuple[Group, ...]:
        """The groups without those that are structures: their units are what layers get narrower by."""
        return tuple(group for group in self.groups if group.structure is None)

    @property
    def num_units(self) -> int:
        """The number of units in all groups together."""
        return self.cost_model.counts.num_units

    @property
    def places(self) -> tuple[TensorDim, ...]:
        """``dims``, under their old name."""
        warnings.warn("space.places is called space.dims now.", DeprecationWarning, stacklevel=2)
        return self.dims

    def cost(self, plan: Plan | None = None) -> Cost:
        """The cost of the model as it is, or as ``plan`` leaves it."""
        if plan is None:
            return self.cost_of(np.ones(self.num_units, dtype=bool))
        keep = self._routed(self.keep_of(plan))
        return with_replacements(self, self.cost_of(keep), keep, plan)

    def _routed(self, keep: BoolArray) -> BoolArray:
        """``keep`` with the units inside of experts that are erased: others, which are counted as being as wide, get
        their tokens."""
        erased = [
            self.structures[group.structure]
            for group in self.groups
            if group.structure is not None and not keep[group.first]
        ]
        own = {name for one in erased if one.router is not None for name in one.producers}
        for group in self.width_groups if own else ():
            if all(piece.tensor in own for piece in group.slices):
                keep[group.numbers] = True
        return keep

    def cost_of(self, keep: FloatArray | BoolArray) -> Cost:
        """The cost when the units with ``keep`` [num_units] true are kept."""
        return self.cost_model(keep if keep.dtype == bool else np.asarray(keep, dtype=np.float64))

    def least_cost(self) -> Cost:
        """The cost with the fewest units in every group (`least_units`): no plan costs less."""
        return self.cost_of(self.least_keep())

    def least_keep(self) -> BoolArray:
        """A mask [num_units] that keeps the fewest units of every group."""
        keep = np.zeros(self.num_units, dtype=bool)
        for group, least in zip(self.groups, self.least_units(), strict=True):
            keep[group.first : group.first + least] = True
        return keep

    def least_units(self) -> list[int]:
        """The fewest units that each group can keep: one, or what its tie allows. (Structures stay: whether they can
        vanish depends on what else does.)"""
        least = [1] * len(self.groups)
        for tie in self.ties:
            for group, step in zip(tie.groups, tie.steps, strict=True):
                least[group] = self.groups[group].units - step * tie.most
        return least

    def keep_of(self, plan: Plan) -> BoolArray:
        """The kept units of a plan as a mask [num_units]; the plan must have been made for this structure."""
        keep = np.zeros(self.num_units, dtype=bool)
        names = {group.name: group for group in self.groups}
        if set(plan.kept) != set(names):
            odd = sorted(set(plan.kept) ^ set(names))[0]
            raise PlanError(
                f"The plan does not belong to this search space: the group {odd!r} exists in only one of the two. "
                "Make a plan from this space with niwaki.choose or method.plan()."
            )
        plan.check_units()
        for name, units in plan.kept.items():
            if plan.units[name] != names[name].units:
                raise PlanError(
                    f"The plan does not belong to this search space: its group {name!r} has {plan.units[name]} units, "
                    f"and here it has {names[name].units}."
                )
            keep[names[name].numbers][np.asarray(units)] = True
        return keep

    def plan(self, keep: BoolArray, provenance: Mapping[str, Any] | None = None) -> Plan:
        """The self-contained plan that keeps the units with ``keep`` [num_units] true.

        Where that erases a structure, all inside of it goes too, whatever ``keep`` says of it.

        Raises:
            PlanError: a group would lose all of its units, structures cannot be erased together, or a size in the
                model's Python code could not follow.
        """
        return planned(self, keep, provenance)

    def __str__(self) -> str:
        return describe_space(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return space_html(self)


class ChannelSpace(SearchSpace):
    """The space of the single channels of union streams: to be scored, and nothing else (`UnionStreams`)."""

    __slots__ = ()


def check_space(space: object) -> None:
    """Raise `MethodError` if what was passed as a search space is something else: the model, or one of unions."""
    check_scored(space)
    if isinstance(space, ChannelSpace):
        raise MethodError(why_scored_alone())


def check_scored(space: object) -> None:
    """As `check_space`, for what scores the units and does nothing else with them."""
    if isinstance(space, UnionStreams):
        raise MethodError(why_refused())
    if not isinstance(space, SearchSpace):
        raise MethodError(
            f"space is a {type(space).__qualname__}, but must be what niwaki.search_space(model, example_inputs) "
            "returns."
        )
