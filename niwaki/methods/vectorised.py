"""The fast path: all units at once, a handful of operations per parameter, none of which waits for the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.segments import UnitIndex, unit_parameters
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.among import among
from niwaki.criteria.registry import Criterion
from niwaki.criteria.sums import DIRECTION_SUMS, UnitSums, enlarged
from niwaki.methods.blocks import blocked_sums
from niwaki.methods.direction import Directions, joined
from niwaki.methods.units import Units

Rows = list[tuple[Tensor, int, Tensor]]  # (parameter, dimension, positions)


class VectorisedUnits(Units):
    """Units as segments of rows of the parameters.

    While a window is open, the copies that `Directions` may need are kept; they are given back at the next `mark`.
    ``numbers``: what the units are called among ``of`` units, of which they are those left.
    """

    def __init__(
        self, space: SearchSpace, optimizer: Optimizer, numbers: IntArray | None = None, of: int | None = None
    ) -> None:
        self._space = space
        self._parameters = unit_parameters(space)
        self._index = UnitIndex.of(space)
        self._driven = [place for place in space.places if place.parameter and place.driven]
        self._of = space.num_units if of is None else of
        numbers = np.arange(space.num_units) if numbers is None else numbers
        self._number = torch.from_numpy(numbers).to(self._index.entries.device)
        self._weights: list[list[Tensor]] = [
            [self._parameters[name] for name in bundle.names] for bundle in self._index.bundles
        ]
        self._directions = Directions(optimizer, [weight for weights in self._weights for weight in weights])
        self._fading: Rows = []
        self._zero: Rows = []

    @property
    def device(self) -> torch.device:
        return self._index.entries.device

    def remember(self) -> None:
        self._directions.remember()

    def values(self, criteria: Sequence[Criterion], seed: int, size: Tensor | None = None) -> Tensor:
        index, reads = self._index, {name for criterion in criteria for name in criterion.reads}
        found = [] if reads.isdisjoint(DIRECTION_SUMS) else self._directions.after()
        rows: dict[str, list[Tensor]] = {}
        first = 0
        for bundle, weights in zip(index.bundles, self._weights, strict=True):
            here = found[first : first + len(weights)]
            first += len(weights)
            x, gradient = bundle.join(weights), _joined_gradient([weight.grad for weight in weights], weights)
            direction = joined(here, weights) if here else None
            for name, parts in blocked_sums(x.detach(), gradient, direction, bundle.dims, reads).items():
                rows.setdefault(name, []).extend(parts)
        others = among(self._space, self._parameters, reads, index.entries)
        totals = index.total(rows) if size is None else enlarged(index.total(rows), size)
        sums = UnitSums(self._of, self._number, index.entries, seed, **totals, **others)
        return torch.stack([criterion.saliency(sums) for criterion in criteria])

    def mark(self, fading: BoolArray, zero: BoolArray) -> None:
        self._directions.forget()
        self._fading, self._zero = [], []
        fades, zeros = np.append(fading, False), np.append(zero, False)
        for place in self._driven:
            weight = self._parameters[place.tensor]
            gone = zeros[place.units].any(axis=1)
            times = np.where(gone, 0, fades[place.units].sum(axis=1))
            for already in range(int(times.max(initial=0))):  # a position of two fading units fades twice
                self._fading.append((weight, place.dim, _positions(times > already, weight)))
            if gone.any():
                self._zero.append((weight, place.dim, _positions(gone, weight)))

    def fade(self, factor: float) -> None:
        for weight, dim, rows in self._fading:
            weight.index_copy_(dim, rows, weight.index_select(dim, rows).mul_(factor))

    def clear(self) -> None:
        for weight, dim, rows in self._zero:
            weight.index_fill_(dim, rows, 0)


def _positions(which: ArrayLike, like: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(which)).to(like.device)


def _joined_gradient(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor | None:
    """The gradients of a bundle as one tensor; None where no gradient reached any of it."""
    if all(gradient is None for gradient in gradients):
        return None
    parts = [
        torch.zeros_like(weight) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        for gradient, weight in zip(gradients, weights, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)
