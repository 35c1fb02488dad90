"""What methods do to units, as an interface: the readable loop and the fast path both implement it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from niwaki.core.space import BoolArray
from niwaki.criteria.registry import Criterion


class Units(Protocol):
    """The units of a search space during training, all without gradients. Only `mark` waits for the device."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """Where `values` are."""

    @abstractmethod
    def remember(self) -> None:
        """Before an optimizer step: keep what its direction cannot be known without afterwards; see `Directions`."""

    @abstractmethod
    def values(self, criteria: Sequence[Criterion], seed: int, size: Tensor | None = None) -> Tensor:
        """After an optimizer step: each criterion of each unit, [criteria, num_units].

        All at the new parameters, with the gradient that the step consumed and the direction that it took. With
        ``size`` [num_units] the sums over each unit are taken as if its weights were so many times as large, where
        gradient and direction are what they are.
        """

    @abstractmethod
    def mark(self, fading: BoolArray, zero: BoolArray) -> None:
        """From now on `fade` means the units in ``fading`` [num_units], and `clear` those in ``zero`` [num_units]."""

    @abstractmethod
    def fade(self, factor: float) -> None:
        """Multiply every driven entry of the fading units by ``factor``, once for each of them that it lies in."""

    @abstractmethod
    def clear(self) -> None:
        """Set every driven entry of the zero units to zero."""
