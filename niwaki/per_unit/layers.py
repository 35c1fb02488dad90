"""Split units by layer, to score each module's part of a unit by itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.per_unit.index import UnitIndex


@dataclass(frozen=True, slots=True, eq=False)
class Layers:
    """The parts of units. Part i is the part of unit ``unit[i]`` in module number ``layer[i]``; ``index`` has the rows
    of each part."""

    index: UnitIndex
    unit: Tensor  # [parts]
    layer: Tensor  # [parts]
    num_units: int
    num_layers: int

    @classmethod
    def of(cls, index: UnitIndex, parameters: Mapping[str, Tensor]) -> Layers:
        """The parts of the units of ``index``."""
        owners: dict[str, int] = {}
        layers, entries = [], []
        for bundle in index.bundles:
            for name in bundle.names:
                value, owner = parameters[name], owners.setdefault(name.rpartition(".")[0], len(owners))
                for dim in bundle.dims:
                    rows = value.shape[dim]
                    layers += [owner] * rows
                    entries += [value.numel() / rows] * rows
        home = index.entries.device
        key = torch.tensor(layers, device=home)[index.row] * index.num_units + index.unit
        parts, part = torch.unique(key, return_inverse=True)
        sizes = index.entries.new_zeros(len(parts))
        sizes.index_add_(0, part, torch.tensor(entries, device=home).to(sizes)[index.row])
        fine = UnitIndex(len(parts), index.bundles, index.row, part, sizes)
        return cls(fine, parts % index.num_units, parts // index.num_units, index.num_units, len(owners))

    def joined(self, values: Tensor, counted: Tensor) -> Tensor:
        """Values of units, [rows, num_units], from ``values`` [rows, parts]: each over the mean of its layer, then the
        mean over the unit's layers. In a layer whose values are all zero, all parts score zero.

        ``counted`` [num_units]: whether the means of layers are taken over the unit. Does not wait for the device.
        """
        mean = _mean(values, counted[self.unit], self.layer, self.num_layers)
        shares = values / torch.where(mean > 0, mean, 1)[:, self.layer]
        return _mean(shares, torch.ones_like(self.unit, dtype=torch.bool), self.unit, self.num_units)


def _mean(values: Tensor, counted: Tensor, where: Tensor, kinds: int) -> Tensor:
    """The mean of those ``values`` [rows, parts] that are ``counted`` [parts], for each number in ``where``."""
    total = values.new_zeros(len(values), kinds).index_add_(1, where, torch.where(counted, values, 0))
    return total / values.new_zeros(kinds).index_add_(0, where, counted.to(values)).clamp(min=1)
