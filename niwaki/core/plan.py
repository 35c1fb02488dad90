"""A plan: plain data that says what stays, enough to cut or load a network without the search space."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from niwaki.core.describe import describe_plan
from niwaki.core.metadata import SIZES
from niwaki.core.names import named_buffers, named_modules, named_parameters, plain_json
from niwaki.core.numbers import AttributeEdit
from niwaki.core.paths import replaced, where_from_json, where_to_json
from niwaki.core.positions import Positions
from niwaki.core.repairs import Repair, ScalarEdit
from niwaki.core.zeroed import Zeroed
from niwaki.errors import PlanError

PLAN_FORMAT = 2  # 1 had no repairs


@dataclass(frozen=True, slots=True)
class TensorShape:
    """Name and dense shape of one parameter or buffer of the model a plan is for."""

    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """What stays of a network.

    ``kept``: kept units by group, ``units``: how many there were. ``tensors``: for every tensor that shrinks, the kept
    indices by dimension. ``attributes``: Python integers to change. ``repairs`` and ``scalars``: weights and floats to
    rescale, where an average goes over fewer entries than before. ``shapes``: the dense network's tensors.
    ``directions``: tensors and dimensions whose entries leave with their units, but are not zero in the zeroed network:
    the directions of a weight norm, which have a length beside them that is. Without any entry they would have none.
    ``zeroed_by_method``: if a method made the plan, the entries of removed units that it has set to zero in its model;
    `niwaki.cut` warns where they are not zero in the weights it is given.
    """

    kept: Mapping[str, Sequence[int]]
    units: Mapping[str, int]
    tensors: Mapping[str, Mapping[int, Sequence[int]]]
    attributes: tuple[AttributeEdit, ...]
    shapes: tuple[TensorShape, ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    repairs: tuple[Repair, ...] = ()
    scalars: tuple[ScalarEdit, ...] = ()
    directions: tuple[tuple[str, int], ...] = ()
    zeroed_by_method: tuple[Zeroed, ...] = ()

    @property
    def structure(self) -> str:
        """A hash of the dense network's tensor names and shapes, and of nothing else: two networks that differ only in
        what they compute from the same tensors share it. That the small network computes the same function is what
        `niwaki.check` proves."""
        return structure_hash(self.shapes)

    def to_json(self) -> str:
        """The plan as JSON text; `from_json` reads it back."""
        return json.dumps(
            {
                "format": PLAN_FORMAT,
                "structure": self.structure,
                "groups": {n: {"units": self.units[n], "kept": list(kept)} for n, kept in self.kept.items()},
                "tensors": {n: {str(d): list(k) for d, k in dims.items()} for n, dims in self.tensors.items()},
                "attributes": [[e.module, e.name, where_to_json(e.where), e.value] for e in self.attributes],
                "repairs": [[r.tensor, r.factor, r.shift] for r in self.repairs],
                "scalars": [[e.module, e.name, e.value, e.epsilon] for e in self.scalars],
                "directions": [[n, d] for n, d in self.directions],
                "zeroed_by_method": [zeroed.data for zeroed in self.zeroed_by_method],
                "shapes": [[s.name, list(s.shape)] for s in self.shapes],
                "provenance": dict(self.provenance),
            },
            indent=1,
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read a plan back.

        Raises:
            PlanError: the text is not a plan, is of a newer format, or contradicts its own structure hash.
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
                kept={str(n): Positions(map(int, g["kept"])) for n, g in data["groups"].items()},
                units={str(n): int(g["units"]) for n, g in data["groups"].items()},
                tensors={
                    str(n): {int(d): Positions(map(int, kept)) for d, kept in dims.items()}
                    for n, dims in data["tensors"].items()
                },
                attributes=tuple(
                    AttributeEdit(str(m), str(a), where_from_json(w), int(v)) for m, a, w, v in data["attributes"]
                ),
                shapes=_shapes(data),
                provenance=dict(data["provenance"]),
                repairs=tuple(Repair(str(n), float(f), float(s)) for n, f, s in data.get("repairs", ())),
                scalars=tuple(ScalarEdit(str(m), str(a), float(v), bool(e)) for m, a, v, e in data.get("scalars", ())),
                directions=tuple((str(n), int(d)) for n, d in data.get("directions", ())),
                zeroed_by_method=tuple(map(Zeroed.of_data, data.get("zeroed_by_method", ()))),
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
                cut = self.tensors.get(planned.name, {})
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
        for edit in self.attributes:
            value = getattr(modules.get(edit.module), edit.name, None)
            try:
                replaced(value, edit.where, edit.value)
            except LookupError:
                raise _edited(
                    f"sets '{edit}' of the module {edit.module!r}, which has no such number there: {edit.name!r} is "
                    f"{_shortened(value)}"
                ) from None
        for scalar in self.scalars:
            if scalar.module not in modules or scalar.name not in modules[scalar.module].__dict__:
                raise _edited(f"rescales {scalar.name!r} of the module {scalar.module!r}, which has no such number")

    def check_units(self) -> None:
        """Raise `PlanError` if the plan keeps units that do not exist."""
        for group, kept in self.kept.items():
            if group not in self.units or not _ascending_below(kept, self.units[group]):
                raise _edited(f"keeps units of the group {group!r} that are not an ascending choice of its units")

    def check_positions(self) -> None:
        """Raise `PlanError` if the plan keeps units, tensors, dimensions or positions that do not exist."""
        self.check_units()
        shapes = {s.name: s.shape for s in self.shapes}
        for repair in self.repairs:
            if repair.tensor not in shapes:
                raise _edited(f"rescales a tensor {repair.tensor!r}, which the network it is for does not have")
        for name, dim in self.directions:
            if dim not in self.tensors.get(name, {}):
                raise _edited(f"calls dimension {dim} of {name!r} a direction, and does not cut it")
        for zeroed in self.zeroed_by_method:
            for name, dim in zeroed.dims:
                if dim not in self.tensors.get(name, {}) or zeroed.positions[-1] >= shapes[name][dim]:
                    raise _edited(f"calls positions in dimension {dim} of {name!r} zero, and does not remove them")
        for name, dims in self.tensors.items():
            if name not in shapes:
                raise _edited(f"cuts a tensor {name!r}, which the network it is for does not have")
            for dim, kept in dims.items():
                if not 0 <= dim < len(shapes[name]):
                    raise _edited(f"cuts dimension {dim} of {name!r}, whose shape is {list(shapes[name])}")
                if not _ascending_below(kept, shapes[name][dim]):
                    raise _edited(
                        f"keeps positions in dimension {dim} of {name!r} that are not an ascending choice of its "
                        f"{shapes[name][dim]}"
                    )

    def __str__(self) -> str:
        return describe_plan(self)


def _shapes(data: Mapping[str, Any]) -> tuple[TensorShape, ...]:
    return tuple(TensorShape(str(name), tuple(map(int, shape))) for name, shape in data["shapes"])


def _ascending_below(kept: Sequence[int], size: int) -> bool:
    if isinstance(kept, Positions):
        return kept.ascending and (not len(kept) or kept[-1] < size)
    return all(left < right for left, right in pairwise((-1, *kept, size)))


def _edited(what: str) -> PlanError:
    return PlanError(f"The plan {what}. It has been damaged or edited by hand: make it again.")


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def tensor_shapes(model: torch.nn.Module) -> tuple[TensorShape, ...]:
    """Every parameter and buffer once, under its first name, sorted by name."""
    named = {name: tuple(p.shape) for name, p in named_parameters(model)}
    named |= {name: tuple(b.shape) for name, b in named_buffers(model)}
    return tuple(TensorShape(name, shape) for name, shape in sorted(named.items()))


def structure_hash(shapes: Sequence[TensorShape]) -> str:
    """A short stable hash of names and shapes."""
    text = json.dumps([[s.name, list(s.shape)] for s in shapes])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def derived_attributes(
    model: torch.nn.Module,
    tensors: Mapping[str, Mapping[int, Sequence[int]]],
    edits: Sequence[AttributeEdit],
) -> list[AttributeEdit]:
    """Sizes that ``torch.nn`` modules keep for show (``out_features``, ``num_features``, ...) and nobody reads in
    ``forward``: they follow their parameters. Attributes that ``edits`` already decide are left alone."""
    decided = {(e.module, e.name) for e in edits if not e.where}
    changes: dict[str, int] = {f"{e.module}.{e.name}": e.value for e in edits if not e.where}
    names = {id(p): name for name, p in named_parameters(model)}
    names |= {id(b): name for name, b in named_buffers(model)}
    derived: list[AttributeEdit] = []
    for path, module in named_modules(model):
        for kind, sizes in SIZES.items():
            if not isinstance(module, kind):
                continue
            for size in sizes:
                # Not as an attribute: that may be computed, and change the module when it is read (spectral norm).
                tensor = module._parameters.get(size.tensor, module._buffers.get(size.tensor))
                if tensor is None or id(tensor) not in names or (path, size.name) in decided:
                    continue
                decided.add((path, size.name))  # by the first of the tensors listed that there is
                kept = tensors.get(names[id(tensor)], {})
                length = len(kept.get(size.dim, range(tensor.shape[size.dim])))
                times = f"{path}.{size.times}"
                if size.times is not None:
                    length *= changes.get(times, getattr(module, size.times))
                # Not compared with the value here: the module may have been shrunk in place since the plan's space was
                # found, and a fresh dense one needs the edit all the same.
                if size.dim in kept or times in changes:
                    derived.append(AttributeEdit(path, size.name, (), length))
    return derived
