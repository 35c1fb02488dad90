"""A plan: plain data that says what stays, enough to cut or load a network without the search space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import torch

from niwaki.core.describe import describe_plan
from niwaki.core.edits.base import (
    Edit,
    ModuleEdit,
    Place,
    ReplacingEdit,
    TensorChange,
    TensorEdit,
    edit_from_data,
    edit_to_data,
    edited_by_hand,
)
from niwaki.core.edits.keep import kept_by_tensor
from niwaki.core.edits.older import edits_of_older
from niwaki.core.html import plan_html
from niwaki.core.json_text import item_a_line
from niwaki.core.names import named_buffers, named_modules, named_parameters, plain_json
from niwaki.core.positions import Positions, whole_number
from niwaki.core.renaming import Renaming
from niwaki.errors import PlanError

PLAN_FORMAT = 3  # 1 had no repairs; 1 and 2 had a key for each kind of edit
E = TypeVar("E", bound=Edit)


@dataclass(frozen=True, slots=True)
class TensorShape:
    """Name and dense shape of one parameter or buffer of the model a plan is for."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Plan:
    """What stays of a network, and all that a cut does.

    ``kept``: kept units by group, ``units``: how many there were. ``shapes``: the dense network's tensors. ``edits``:
    what a cut does to the dense network, in this order (`niwaki.core.edits`): the kept indices of each tensor and
    dimension, weights that are rescaled afterwards, numbers in Python that change; and what a method has set to zero,
    if one made the plan. ``provenance``: where the plan comes from.
    """

    kept: Mapping[str, Sequence[int]]
    units: Mapping[str, int]
    shapes: tuple[TensorShape, ...]
    edits: tuple[Edit, ...] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def structure(self) -> str:
        """A hash of the dense network's tensor names and shapes, and of nothing else: two networks that differ only in
        what they compute from the same tensors share it. That the small network computes the same function is what
        `niwaki.check` proves."""
        return structure_hash(self.shapes)

    @cached_property
    def dense(self) -> Mapping[str, tuple[int, ...]]:
        """The shapes of the dense network's tensors, by name."""
        return {one.name: one.shape for one in self.shapes}

    @cached_property
    def at(self) -> Mapping[Place, Edit]:
        """The edits by their place."""
        return {edit.place: edit for edit in self.edits}

    @cached_property
    def changes(self) -> Mapping[str, TensorChange]:
        """What happens to each tensor that does not stay as it is."""
        found: dict[str, list[TensorEdit]] = {}
        for edit in self.edits:
            if isinstance(edit, TensorEdit):
                found.setdefault(edit.tensor, []).append(edit)
        return {name: TensorChange(name, tuple(edits)) for name, edits in found.items()}

    def change_of(self, tensor: str) -> TensorChange:
        """What happens to one tensor; nothing, perhaps."""
        return self.changes.get(tensor) or TensorChange(tensor)

    @property
    def module_edits(self) -> tuple[ModuleEdit, ...]:
        """The edits that change modules, in their order."""
        return tuple(edit for edit in self.edits if isinstance(edit, ModuleEdit))

    @cached_property
    def lengths(self) -> Mapping[tuple[str, int], int]:
        """What is left of the dimensions that get shorter, by tensor and dimension."""
        return {
            (name, dim): change.shape_of(self.dense[name])[dim]
            for name, change in self.changes.items()
            for dim in change.dims
        }

    @cached_property
    def tensors(self) -> Mapping[str, Mapping[int, Sequence[int]]]:
        """For a look at the plan: the kept indices by dimension, of every tensor that shrinks."""
        return kept_by_tensor(self.edits)

    def edits_of(self, kind: type[E]) -> tuple[E, ...]:
        """The edits of one class, such as `niwaki.core.edits.SetAttribute`."""
        return tuple(edit for edit in self.edits if isinstance(edit, kind))

    def with_edits(self, edits: Iterable[Edit]) -> Plan:
        """The same plan with more edits after its own."""
        return replace(self, edits=(*self.edits, *edits))

    def to_json(self) -> str:
        """The plan as JSON text, with an edit a line; `from_json` reads it back."""
        data = {
            "format": PLAN_FORMAT,
            "structure": self.structure,
            "groups": {n: {"units": self.units[n], "kept": list(kept)} for n, kept in self.kept.items()},
            "edits": [edit_to_data(edit) for edit in self.edits],
            "shapes": [[s.name, list(s.shape)] for s in self.shapes],
            "provenance": dict(self.provenance),
        }
        return item_a_line(data)

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back.

        Raises:
            PlanError: the text is not a plan, is of a newer format, has edits of a kind that is not known here, or
                contradicts itself or its own structure hash.
        """
        try:
            data = json.loads(text)
            version = data["format"]
            if version not in range(1, PLAN_FORMAT + 1):
                raise PlanError(
                    f"The plan has format {version!r}, and this niwaki reads formats up to {PLAN_FORMAT}. "
                    "Use the niwaki version that wrote it."
                )
            intact = structure_hash(_shapes(data)) == data["structure"]
            data = plain_json(data)
            plan = cls(
                kept={str(n): Positions.from_json(g["kept"]) for n, g in data["groups"].items()},
                units={str(n): whole_number(g["units"]) for n, g in data["groups"].items()},
                shapes=_shapes(data),
                edits=edits_of_older(data) if version < PLAN_FORMAT else tuple(map(edit_from_data, data["edits"])),
                provenance=dict(data["provenance"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as cause:
            raise PlanError(
                f"The text is not a niwaki plan: {type(cause).__qualname__}: {cause}. "
                "It is damaged or was written by something else."
            ) from cause
        if not intact:
            raise PlanError("The plan contradicts its own structure hash: it has been damaged or edited by hand.")
        return plan

    def check_fits(self, model: torch.nn.Module) -> None:
        """Raise `PlanError` naming the first tensor in which ``model`` differs from the plan's dense network, or the
        first position of the plan that this network does not have. A buffer may have other sizes where the plan does
        not cut it: some grow while the network runs."""
        there = {s.name: s.shape for s in tensor_shapes(model)}
        buffers = {name for name, _ in model.named_buffers()}
        for planned in self.shapes:
            if planned.name not in there:
                raise PlanError(
                    f"The plan is for another network: it expects a tensor {planned.name!r} of shape "
                    f"{list(planned.shape)}, which this model does not have. Pass the dense model that the plan was "
                    "made for."
                )
            found = there[planned.name]
            if planned.name in buffers and len(found) == len(planned.shape):
                cut = self.change_of(planned.name).dims
                found = tuple(found[dim] if dim in cut else size for dim, size in enumerate(planned.shape))
            if found != planned.shape:
                raise PlanError(
                    f"The plan is for another network: it expects {planned.name!r} to have the shape "
                    f"{list(planned.shape)}, but here it has {list(there[planned.name])}. "
                    "Pass the dense model the plan was made for (has it been cut already?)."
                )
        extra = sorted(set(there) - {s.name for s in self.shapes})
        if extra:
            raise PlanError(
                f"The plan is for another network: this model has a tensor {extra[0]!r} that the plan does not know. "
                "Pass the dense model the plan was made for."
            )
        self.check_positions()
        modules = dict(named_modules(model))
        for edit in self.module_edits:
            edit.check_model(modules)

    def check_units(self) -> None:
        """Raise `PlanError` if the plan keeps units that do not exist."""
        for group, kept in self.kept.items():
            units = Positions.of(kept)
            if group not in self.units or not units.ascending or (len(units) and units[-1] >= self.units[group]):
                raise edited_by_hand(
                    f"keeps units of the group {group!r} that are not an ascending choice of its units"
                )

    def check_positions(self) -> None:
        """Raise `PlanError` if the plan keeps units, tensors, dimensions or positions that do not exist."""
        self.check_units()
        seen: set[Place] = set()
        for edit in self.edits:
            edit.check(self)
            if edit.place in seen:
                raise edited_by_hand(f"says twice what becomes of one thing: {edit.kind}, {edit}")
            seen.add(edit.place)

    def __str__(self) -> str:
        return describe_plan(self)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return plan_html(self)


def _shapes(data: Mapping[str, Any]) -> tuple[TensorShape, ...]:
    return tuple(TensorShape(str(name), tuple(map(int, shape))) for name, shape in data["shapes"])


def smaller_shapes(plan: Plan) -> tuple[TensorShape, ...]:
    """Names and shapes of the tensors after the cut."""
    names = Renaming.of(plan)
    shapes = {
        name: plan.change_of(one.name).shape_of(one.shape)
        for one in plan.shapes
        if (name := names.after(one.name)) is not None
    }
    for edit in plan.module_edits:
        now = edit.renamed(names.after) if isinstance(edit, ReplacingEdit) else edit
        if now is not None:
            now.update_shapes(shapes)
    return tuple(TensorShape(name, shape) for name, shape in sorted(shapes.items()))


def touched_tensors(plan: Plan) -> set[str]:
    """The names of the tensors that a cut changes, removes or adds."""
    before = {(one.name, one.shape) for one in plan.shapes}
    after = {(one.name, one.shape) for one in smaller_shapes(plan)}
    return {name for name, _ in before ^ after} | plan.changes.keys()


def tensor_shapes(model: torch.nn.Module) -> tuple[TensorShape, ...]:
    """Every parameter and buffer once, under its first name, sorted by name."""
    named = {name: tuple(p.shape) for name, p in named_parameters(model)}
    named |= {name: tuple(b.shape) for name, b in named_buffers(model)}
    return tuple(TensorShape(name, shape) for name, shape in sorted(named.items()))


def structure_hash(shapes: Sequence[TensorShape]) -> str:
    """A short stable hash of names and shapes."""
    text = json.dumps([[s.name, list(s.shape)] for s in shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
