"""The layers of a network that can have implants, and the units that can be implanted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from niwaki.core.counts import BoolArray, FloatArray, IntArray
from niwaki.core.edits import Edit, Implant, Keep
from niwaki.core.edits.implant import CONVOLUTIONS, centre, why_not_replaceable
from niwaki.core.implant_costs import macs_of_weights
from niwaki.core.names import named_modules, named_parameters
from niwaki.core.plan import Plan
from niwaki.core.positions import Positions
from niwaki.core.space import Group, SearchSpace
from niwaki.errors import PlanError
from niwaki.program.module import Program


@dataclass(frozen=True, slots=True, eq=False)
class ImplantLayer:
    """A layer whose outputs can be implants: its path, the units [rows, K] of its outputs (padded with ``num_units``),
    and the number of entries of one kernel."""

    module: str
    units: IntArray
    taps: int

    @property
    def weight(self) -> str:
        """The name of its weight."""
        return f"{self.module}.weight"

    def rows(self, units: BoolArray, *, every: bool) -> BoolArray:
        """The outputs of ``units`` [num_units]: of any, or, with ``every``, of nothing else."""
        found = np.append(units, every)[self.units]
        return np.asarray(found.all(axis=1) if every else found.any(axis=1), bool)


@dataclass(frozen=True, slots=True, eq=False)
class ImplantLayers:
    """The layers of a search space that can have implants.

    ``can`` [num_units]: the units that can be implanted: every kernel of more than one entry that produces one is of
    such a layer, and there is one. ``refused``: why the units of other groups cannot, by the name of the group.
    """

    space: SearchSpace
    layers: tuple[ImplantLayer, ...]
    can: BoolArray
    refused: Mapping[str, str]

    @classmethod
    def of(cls, space: SearchSpace) -> ImplantLayers:
        """Those of ``space``.

        Raises:
            PlanError: it is of a program, which has no layers.
        """
        modules = dict(named_modules(space.model))
        if isinstance(space.model, Program):
            raise PlanError(
                "Implants take the place of layers, and the space is of an exported program, which has none. Make it "
                "of the model, implant, cut, and export the small network."
            )
        names = Counter(id(p) for _, p in named_parameters(space.model, remove_duplicate=False))
        shared = {name for name, p in named_parameters(space.model) if names[id(p)] > 1}
        can, refused = np.zeros(space.num_units, dtype=bool), dict[str, str]()
        used: set[str] = set()
        for group in space.width_groups:
            why, weights = _why_not(space, group, modules, shared)
            if why is None:
                can[group.numbers] = True
                used |= weights
            else:
                refused[group.name] = why
        shapes = {one.name: one.shape for one in space.shapes}
        layers = tuple(
            ImplantLayer(place.tensor.removesuffix(".weight"), place.units, int(np.prod(shapes[place.tensor][2:])))
            for place in space.dims
            if place.tensor in used and place.dim == 0
        )
        return cls(space, layers, can, refused)

    def check(self, slim: BoolArray, keep: BoolArray) -> None:
        """Raise `PlanError` if the units ``slim`` [num_units] cannot be implanted while ``keep`` stay."""
        wrong = np.flatnonzero(slim & ~(self.can & keep))
        if not len(wrong):
            return
        group = next(one for one in self.space.groups if one.first <= wrong[0] < one.first + one.units)
        if not keep[wrong[0]]:
            raise PlanError(f"A unit of {group.name!r} cannot be removed and implanted at once.")
        raise PlanError(
            f"Units of {group.name!r} cannot be implanted: {self.refused.get(group.name, 'it is a structure')}. Keep "
            "or remove them."
        )

    def edits(self, plan: Plan, slim: BoolArray) -> list[Edit]:
        """The edits that implant the units ``slim`` [num_units], for a ``plan`` that keeps them.

        Raises:
            PlanError: they cannot be implanted, or are all outputs of a layer.
        """
        self.check(slim, self.space.keep_of(plan))
        found: list[Edit] = []
        for layer in self.layers:
            keep = plan.at.get(("keep", layer.weight, 0))
            dense = plan.dense[layer.weight]
            kept = np.asarray(keep.kept) if isinstance(keep, Keep) else np.arange(dense[0])
            own = kept[layer.rows(slim, every=False)[kept]]
            if len(own) and len(own) == len(kept):
                raise PlanError(
                    f"The plan would implant all {len(kept)} outputs of {layer.module!r} that stay. Leave one as it "
                    "is: a layer of implants alone is a 1x1 convolution."
                )
            if len(own):
                shape = plan.change_of(layer.weight).shape_of(dense)
                bias = f"{layer.module}.bias" in plan.dense
                found.append(Implant(layer.module, Positions(kept), Positions(own), shape, bias))
        return found

    def saved(self, keep: BoolArray, slim: BoolArray, measure: str) -> float:
        """What the implants ``slim`` [num_units] cost less, beside the units ``keep``, in ``macs`` or ``params``."""
        return float(sum(share @ rows for share, rows in self.row_savings(keep, slim, measure)))

    def row_savings(self, keep: BoolArray, slim: BoolArray, measure: str) -> list[tuple[FloatArray, FloatArray]]:
        """For every layer, what each of its outputs that stay would cost less as an implant, and which are implants,
        both [rows]."""
        macs = macs_of_weights(self.space, keep, [layer.weight for layer in self.layers])
        inputs = self._inputs(keep) if measure != "macs" else {}
        found = []
        for layer in self.layers:
            alive = layer.rows(keep, every=True)
            whole = macs[layer.weight] / max(alive.sum(), 1) if measure == "macs" else inputs[layer.weight] * layer.taps
            each = np.where(alive, whole * (1 - 1 / layer.taps), 0.0)
            found.append((each, layer.rows(slim, every=False).astype(np.float64)))
        return found

    def prices(self, keep: BoolArray, measure: str) -> FloatArray:
        """What implanting each unit alone would save, beside the units ``keep``, [num_units]."""
        none = np.zeros(self.space.num_units, dtype=bool)
        found = np.zeros(self.space.num_units + 1)
        for layer, (each, _) in zip(self.layers, self.row_savings(keep, none, measure), strict=True):
            for column in layer.units.T:
                np.add.at(found, column, each)
        return np.where(self.can, found[:-1], 0.0)

    def _inputs(self, keep: BoolArray) -> dict[str, int]:
        """The inputs of each layer that stay."""
        shapes = {one.name: one.shape for one in self.space.shapes}
        stays = {name: shape[1] for name, shape in shapes.items() if len(shape) > 1}
        alive = np.append(keep, True)
        for place in self.space.dims:
            if place.dim == 1:
                stays[place.tensor] = int(alive[place.units].all(axis=1).sum())
        return stays

    @torch.no_grad()
    def lost_share(self) -> FloatArray:
        """The fraction of each unit's squared weights, in matrices and kernels, that it loses as an implant: what lies
        around the centres of kernels, [num_units]."""
        whole, around = np.zeros((2, self.space.num_units + 1))
        parameters = dict(named_parameters(self.space.model))
        own = {layer.weight for layer in self.layers}
        for place in self.space.dims:
            value = parameters.get(place.tensor)
            if value is None or not place.role.produces or value.dim() < 2:
                continue
            rows = value.detach().double().movedim(place.dim, 0)
            square = rows.flatten(1).square().sum(1).cpu().numpy()
            middle = centre(rows).flatten(1).square().sum(1).cpu().numpy() if place.tensor in own else square
            for column in place.units.T:
                np.add.at(whole, column, square)
                np.add.at(around, column, square - middle)
        return np.where(whole > 0, around / np.maximum(whole, 1e-300), 0.0)[:-1]


def _why_not(
    space: SearchSpace, group: Group, modules: Mapping[str, nn.Module], shared: set[str]
) -> tuple[str | None, set[str]]:
    """Why the units of a group cannot be implanted, or None; and the kernels that they would be implants in."""
    shapes = {one.name: one.shape for one in space.shapes}
    weights: set[str] = set()
    for piece in group.slices:
        if not (piece.parameter and piece.role.produces) or int(np.prod(shapes[piece.tensor][2:])) == 1:
            continue
        if len(shapes[piece.tensor]) < 3:
            continue
        path, _, leaf = piece.tensor.rpartition(".")
        layer = modules.get(path)
        if leaf != "weight" or layer is None or not path or piece.dim != 0 or type(layer) not in CONVOLUTIONS:
            return f"{piece.tensor!r}, which produces them, is not the weight of a convolution", weights
        if piece.tensor in shared:
            return f"{piece.tensor!r}, which produces them, is the weight of several layers", weights
        why = why_not_replaceable(layer, None)
        if why is not None:
            return f"{path!r}: {why}", weights
        weights.add(piece.tensor)
    return (None if weights else "no kernel of more than one entry produces them"), weights
