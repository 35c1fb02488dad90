"""Measure terms without parameters at a trained model: by the gradient of the loss by their gates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.dying import structure_units
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.registry import Criterion
from niwaki.per_unit.gated_units import term_sums
from niwaki.per_unit.gates import TermGates


def terms_of(space: SearchSpace) -> BoolArray:
    """The units of ``space`` that nothing but a gate makes, [num_units]."""
    found = np.zeros(space.num_units, dtype=bool)
    for number, unit in structure_units(space).items():
        found[unit] = space.structures[number].bare
    return found


@final
class MeasuredTerms:
    """The means over batches of what criteria of the gradient say of each gate, as of one weight of value 1."""

    def __init__(self, space: SearchSpace, criteria: Sequence[Criterion], seed: int) -> None:
        gated = [number for number in structure_units(space) if space.structures[number].gated]
        self._gates = TermGates(space, gated)
        self._space, self._seed = space, seed
        self._rows = [row for row, one in enumerate(criteria) if one.reads_gates]
        self._criteria = [criteria[row] for row in self._rows]
        self._total: Tensor | None = None
        self._count = 0

    def __len__(self) -> int:
        return len(self._gates) if self._rows else 0

    @property
    def values(self) -> nn.Parameter:
        """What the loss is differentiated by, [gates]."""
        return self._gates.values

    @contextmanager
    def attached(self) -> Iterator[None]:
        """The gates multiply their terms inside, if there are any to measure."""
        if not len(self):
            yield
            return
        with self._gates.attached(self._space.model):
            yield

    @torch.no_grad()
    def add(self, slope: Tensor | None) -> None:
        """One batch, with the gradient by the gates."""
        values = self.values.detach()
        slope = torch.zeros_like(values) if slope is None else slope
        sums = term_sums(values, slope, self._space.num_units, self._seed)
        found = torch.stack([one.saliency(sums) for one in self._criteria])
        self._total = found if self._total is None else self._total + found
        self._count += 1

    def beside(self, rows: Tensor, by_layer: bool) -> Tensor:
        """``rows`` [criteria, num_units] with the terms: alone, or beside the weights of the same unit."""
        if self._total is None:
            return rows
        units = structure_units(self._space)
        found, mean = rows.clone(), self._total.to(rows) / self._count
        if by_layer:  # over the mean, as those of layers are
            usual = mean.mean(1, keepdim=True)
            mean = mean / torch.where(usual > 0, usual, 1)
        for place, number in enumerate(self._gates.structures):
            bare = self._space.structures[number].bare
            for row, value in zip(self._rows, mean[:, place], strict=True):
                found[row, units[number]] = value + (0 if bare else found[row, units[number]])
        return found
