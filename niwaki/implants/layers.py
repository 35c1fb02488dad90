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
from niwaki.core.edits.implant import CONVOLUTIONS, centre, factors, why_not_replaceable
from niwaki.core.names import named_modules, named_parameters
from niwaki.core.plan import Plan
from niwaki.core.positions import Positions
from niwaki.core.replaced_costs import macs_of_weights
from niwaki.core.scalars import is_whole
from niwaki.core.space import Group, SearchSpace, check_space
from niwaki.errors import PlanError
from niwaki.program.module import Program


@dataclass(frozen=True, slots=True, eq=False)
class ImplantLayer:
    """A layer whose outputs can be implants: its path, the units [rows, K] of its outputs (padded with ``num_units``),
    the number of entries of one kernel, and, of a linear layer, the rank of all of its implants together."""

    module: str
    units: IntArray
    taps: int
    rank: int | None = None

    def saved(self, row: float, inputs: int, slim: int) -> float:
        """What ``slim`` implants cost less, where a whole output with ``inputs`` costs ``row``. Where two factors cost
        more than their product the rows stay whole."""
        if self.rank is None:
            return slim * row * (1 - 1 / self.taps)
        if self.rank >= min(slim, inputs):
            return 0.0
        return max(0.0, slim * row - self.rank * (slim * row / max(inputs, 1) + row))

    def price(self, row: float, inputs: int, alive: int) -> float:
        """What one more implant saves. Of the factor that all implants share, it is taken to bear as much as if half of
        the ``alive`` outputs were implants."""
        if self.rank is None:
            return row * (1 - 1 / self.taps)
        return max(0.0, row * (1 - self.rank / max(inputs, 1)) - 2 * self.rank * row / max(alive, 1))

    @property
    def weight(self) -> str:
        """The name of its weight."""
        return f"{self.module}.weight"

    def rows(self, units: BoolArray, *, every: bool) -> BoolArray:
        """The outputs of ``units`` [num_units]: of any, or, with ``every``, of nothing else."""
        found = np.append(units, every)[self.units]
        return np.asarray(found.all(axis=1) if every else found.any(axis=1), bool)


@dataclass(frozen=True, slots=True, eq=False)
class RowCosts:
    """The outputs of a layer: which stay and which of these are implants, both [rows]; what a whole one costs; what all
    implants cost less; and what one more of them would save."""

    layer: ImplantLayer
    alive: BoolArray
    slim: BoolArray
    row: float
    saved: float
    price: float


@dataclass(frozen=True, slots=True, eq=False)
class ImplantLayers:
    """The layers of a search space that can have implants.

    ``can`` [num_units]: the units that can be implanted: every kernel of more than one entry that produces one is of
    such a layer (with a ``rank``, every linear layer too), and there is one. ``refused``: why the units of other groups
    cannot, by the name of the group.
    """

    space: SearchSpace
    layers: tuple[ImplantLayer, ...]
    can: BoolArray
    refused: Mapping[str, str]

    @classmethod
    def of(cls, space: SearchSpace, rank: int | None = None) -> ImplantLayers:
        """Those of ``space``. ``rank``: of the implants of linear layers; None for convolutions alone.

        Raises:
            PlanError: it is of a program, which has no layers, or the rank is not a whole number, 1 or more.
        """
        check_space(space)
        if rank is not None and not (is_whole(rank) and rank >= 1):
            raise PlanError(f"rank={rank!r} must be a whole number, 1 or more, or None for convolutions alone.")
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
            why, weights = _why_not(space, group, modules, shared, rank)
            if why is None:
                can[group.numbers] = True
                used |= weights
            else:
                refused[group.name] = why
        shapes = {one.name: one.shape for one in space.shapes}
        layers = tuple(
            ImplantLayer(
                place.tensor.removesuffix(".weight"),
                place.units,
                int(np.prod(shapes[place.tensor][2:])),
                rank if len(shapes[place.tensor]) == 2 else None,
            )
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
            shape = plan.change_of(layer.weight).shape_of(dense)
            if layer.rank is not None and not layer.saved(shape[1], shape[1], len(own)):
                continue
            if len(own) and len(own) == len(kept):
                raise PlanError(
                    f"The plan would implant all {len(kept)} outputs of {layer.module!r} that stay. Leave one as it "
                    "is: a layer of implants alone is a 1x1 convolution."
                )
            if len(own):
                bias = f"{layer.module}.bias" in plan.dense
                found.append(Implant(layer.module, Positions(kept), Positions(own), shape, bias, layer.rank))
        return found

    def saved(self, keep: BoolArray, slim: BoolArray, measure: str) -> float:
        """What the implants ``slim`` [num_units] cost less, beside the units ``keep``, in ``macs``, ``params``, or
        ``latency`` where that was timed (`niwaki.timed`)."""
        return float(sum(one.saved for one in self.row_costs(keep, slim, measure)))

    def row_costs(self, keep: BoolArray, slim: BoolArray, measure: str) -> list[RowCosts]:
        """What the outputs of every layer cost, with implants ``slim`` [num_units] beside the units ``keep``."""
        macs = macs_of_weights(self.space, keep, [layer.weight for layer in self.layers])
        inputs = self._inputs(keep)
        found = []
        for layer in self.layers:
            alive, wide = layer.rows(keep, every=True), inputs[layer.weight]
            number = int(alive.sum())
            own = layer.rows(slim, every=False) & alive
            if measure == "latency":
                times = self.space.cost_model.implant_times[layer.weight]
                row, saved, price = 0.0, times.saved(wide, int(own.sum())), times.price(wide, number)
            else:
                row = macs[layer.weight] / max(number, 1) if measure == "macs" else float(wide * layer.taps)
                saved, price = layer.saved(row, wide, int(own.sum())), layer.price(row, wide, number)
            found.append(RowCosts(layer, alive, own, row, saved, price))
        return found

    def prices(self, keep: BoolArray, measure: str) -> FloatArray:
        """What implanting each unit alone would save, beside the units ``keep``, [num_units]."""
        none = np.zeros(self.space.num_units, dtype=bool)
        found = np.zeros(self.space.num_units + 1)
        for one in self.row_costs(keep, none, measure):
            for column in one.layer.units.T:
                np.add.at(found, column, np.where(one.alive, one.price, 0.0))
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
        """The fraction of each unit's squared weights, in matrices and kernels, that it loses as an implant,
        [num_units]: what lies around the centres of kernels, and what a whole linear layer of the rank is away."""
        whole, around = np.zeros((2, self.space.num_units + 1))
        parameters = dict(named_parameters(self.space.model))
        own = {layer.weight: layer.rank for layer in self.layers}
        for place in self.space.dims:
            value = parameters.get(place.tensor)
            if value is None or not place.role.produces or value.dim() < 2:
                continue
            rows = value.detach().double().movedim(place.dim, 0)
            square = rows.flatten(1).square().sum(1).cpu().numpy()
            middle = square
            if place.tensor in own:
                rank = own[place.tensor]
                near = centre(rows) if rank is None else torch.mm(*factors(rows, rank))
                middle = near.flatten(1).square().sum(1).cpu().numpy()
            for column in place.units.T:
                np.add.at(whole, column, square)
                np.add.at(around, column, square - middle)
        return np.where(whole > 0, around / np.maximum(whole, 1e-300), 0.0)[:-1]


def _why_not(
    space: SearchSpace, group: Group, modules: Mapping[str, nn.Module], shared: set[str], rank: int | None
) -> tuple[str | None, set[str]]:
    """Why the units of a group cannot be implanted, or None; and the weights that they would be implants in."""
    shapes = {one.name: one.shape for one in space.shapes}
    weights: set[str] = set()
    for piece in group.slices:
        shape = shapes[piece.tensor]
        if not (piece.parameter and piece.role.produces) or len(shape) < 2:
            continue
        path, _, leaf = piece.tensor.rpartition(".")
        layer = modules.get(path)
        kernel = len(shape) > 2 and int(np.prod(shape[2:])) > 1
        if not kernel and not (rank is not None and type(layer) is nn.Linear and leaf == "weight" and piece.dim == 0):
            continue  # stays whole
        if leaf != "weight" or not path or piece.dim != 0 or (kernel and type(layer) not in CONVOLUTIONS):
            return f"{piece.tensor!r}, which produces them, is not the weight of a convolution", weights
        if piece.tensor in shared:
            return f"{piece.tensor!r}, which produces them, is the weight of several layers", weights
        why = why_not_replaceable(layer, None if kernel else rank)
        if why is not None:
            return f"{path!r}: {why}", weights
        weights.add(piece.tensor)
    if weights:
        return None, weights
    linear = "" if rank is None else ", and no linear layer"
    return f"no kernel of more than one entry{linear} produces them", weights
