"""The specification: units one by one, as in the papers. Slow; the fast path must do the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.segments import as_real, unit_parameters
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import group_of
from niwaki.criteria.registry import Criterion
from niwaki.criteria.scales import mean_scales
from niwaki.criteria.sums import UnitSums
from niwaki.methods.direction import Directions
from niwaki.methods.units import Units


class PlainUnits(Units):
    """Units as loops over groups, units and slices."""

    def __init__(
        self, space: SearchSpace, optimizer: Optimizer, numbers: IntArray | None = None, of: int | None = None
    ) -> None:
        self._space = space
        self._of = space.num_units if of is None else of
        self._number = torch.from_numpy(np.arange(space.num_units) if numbers is None else numbers)
        self._parameters = unit_parameters(space)
        self._directions = Directions(optimizer, list(self._parameters.values()))
        self._fading = self._zero = np.zeros(space.num_units, dtype=bool)

    @property
    def device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    def remember(self) -> None:
        self._directions.remember()

    def values(self, criteria: Sequence[Criterion], seed: int, size: Tensor | None = None) -> Tensor:
        weights, sums = [], []
        found = zip(self._parameters.items(), self._directions.after(), strict=True)
        ways = {name: direction.whole(weight.detach()) for (name, weight), direction in found}
        for number in range(self._space.num_units):
            x, gradient, direction = [], [], []
            for name, dim, index in self._entries(number, produces=True):
                weight = self._parameters[name]
                grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.to_dense()
                x.append(weight.detach().index_select(dim, index).flatten())
                gradient.append(grad.index_select(dim, index).flatten())
                direction.append(ways[name].index_select(dim, index).flatten())
            weights.append(torch.cat(x))
            larger = torch.cat(x) if size is None else torch.cat(x) * size[number]
            sums.append(_sums(larger, torch.cat(gradient), torch.cat(direction)))
        group = torch.from_numpy(group_of(self._space))
        fields = {name: torch.stack([unit[name] for unit in sums]) for name in sums[0]}
        if any("distance" in criterion.reads for criterion in criteria):
            fields["distance"] = torch.stack(
                [
                    torch.stack([(x - y).norm() for y, h in zip(weights, group, strict=True) if g == h]).sum()
                    for x, g in zip(weights, group, strict=True)
                ]
            )
        if any("scale" in criterion.reads for criterion in criteria):
            fields["scale"] = mean_scales(self._space, self._parameters, fields["square"])
        units = UnitSums(self._of, self._number, seed=seed, group=group, **fields)
        return torch.stack([criterion.saliency(units) for criterion in criteria])

    def mark(self, fading: BoolArray, zero: BoolArray) -> None:
        self._fading, self._zero = fading, zero

    def fade(self, factor: float) -> None:
        for number in np.flatnonzero(self._fading).tolist():
            for name, dim, index in self._entries(number, produces=False):
                weight = self._parameters[name].detach()
                weight.index_copy_(dim, index, weight.index_select(dim, index) * factor)

    def clear(self) -> None:
        for number in np.flatnonzero(self._zero).tolist():
            for name, dim, index in self._entries(number, produces=False):
                self._parameters[name].detach().index_fill_(dim, index, 0)

    def _entries(self, number: int, *, produces: bool) -> Iterator[tuple[str, int, Tensor]]:
        """The producing (or all driven) entries of a unit: parameter, dimension, positions."""
        group = next(g for g in self._space.groups if g.first <= number < g.first + g.units)
        for piece in group.slices:
            if piece.parameter and (piece.produces if produces else piece.driven):
                yield piece.tensor, piece.dim, torch.from_numpy(piece.index[number - group.first])


def _sums(x: Tensor, gradient: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """The sums over one unit of its weights, their gradient and their direction, each flat."""
    entries = len(x)
    x, gradient, direction = (as_real(part) for part in (x, gradient, direction))
    return {
        "entries": torch.tensor(entries).to(x),
        "square": x.square().sum(),
        "absolute": x.abs().sum(),
        "product": (x * gradient).sum(),
        "product_square": (x * gradient).square().sum(),
        "aligned": (x * direction).sum(),
        "direction_square": direction.square().sum(),
    }
