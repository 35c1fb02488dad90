"""Gates of the units of a merged network, in the network with its LoRA pairs beside frozen weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, final

import torch
from torch import Tensor, nn

from niwaki.core.counts import IntArray
from niwaki.core.space import SearchSpace
from niwaki.per_unit.unit_gates import UnitGates

T = TypeVar("T")


@final
class MergedGates:
    """As `UnitGates`, for the units ``number`` [merged num_units] of the space ``whole``; those of the rank are always
    there. A reader of a unit is W and A, so that gates act on W + s B A."""

    def __init__(self, whole: SearchSpace, number: IntArray) -> None:
        self._gates, self._units = UnitGates(whole), whole.num_units
        self._number = torch.from_numpy(number)

    def value(self, gates: Tensor, function: Callable[[nn.Module], T]) -> T:
        """What ``function(model)`` returns under ``gates`` [merged num_units]."""
        return self._gates.value(self._all(gates), function)

    def zeroed(self, mask: Tensor, function: Callable[[nn.Module], T]) -> T:
        """The same with all that makes units of a ``mask`` of 0 and 1 at zero."""
        return self._gates.zeroed(self._all(mask), function)

    def gradient(self, gates: Tensor, function: Callable[[nn.Module], Tensor]) -> tuple[Tensor, Tensor | None]:
        """The scalar that ``function(model)`` returns under ``gates``, and its gradient by them."""
        loss, found = self._gates.gradient(self._all(gates), function)
        return loss, None if found is None else found[self._number.to(found.device)]

    @property
    def inside(self) -> bool:
        """Whether the model is in a block of `applied` now."""
        return self._gates.inside

    @contextmanager
    def applied(self, gates: Tensor) -> Iterator[None]:
        """Inside, the model computes under ``gates``."""
        with self._gates.applied(self._all(gates)):
            yield

    def _all(self, gates: Tensor) -> Tensor:
        every = gates.new_ones(self._units)
        every[self._number.to(gates.device)] = gates.detach()
        return every
