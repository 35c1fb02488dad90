"""Repairs: what a cut changes so that an average over fewer entries has the same value.

A mean over n entries, of which the removed ones are zero, is m/n times the mean over the m remaining ones. Everything
computed from it carries a power of n/m until a weight takes up the factor; an epsilon that is added on the way is
scaled too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from niwaki.core.counts import FloatArray
from niwaki.core.edits import Rescale, SetScalar


@dataclass(frozen=True, slots=True)
class Scalar:
    """A float attribute of a module. ``epsilon``: whether it is None, which stands for the machine epsilon of the
    dtype."""

    module: str
    name: str
    value: float
    epsilon: bool = False


@dataclass(frozen=True, slots=True)
class Factor:
    """(n / m) ** power, where axis number ``axis`` has n = ``size`` positions, and m after a cut."""

    axis: int
    size: int
    power: float


@dataclass(frozen=True, slots=True)
class TensorRule:
    """``tensor + shift`` has to be multiplied by ``factors``."""

    tensor: str
    shift: float
    factors: tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class ScalarRule:
    """``scalar`` has to be multiplied by ``factors``."""

    scalar: Scalar
    factors: tuple[Factor, ...]


@dataclass(frozen=True, slots=True)
class Repairs:
    """All repairs of a search space."""

    tensors: tuple[TensorRule, ...] = ()
    scalars: tuple[ScalarRule, ...] = ()

    def solve(self, counts: FloatArray) -> tuple[list[Rescale], list[SetScalar]]:
        """The repairs for the surviving ``counts`` [num_axes]."""
        repairs = [Rescale(rule.tensor, ratio(rule.factors, counts), rule.shift) for rule in self.tensors]
        edits = []
        for rule in self.scalars:
            scalar, times = rule.scalar, ratio(rule.factors, counts)
            if times != 1:
                value = times if scalar.epsilon else scalar.value * times
                edits.append(SetScalar(scalar.module, scalar.name, value, scalar.epsilon))
        return [repair for repair in repairs if repair.factor != 1], edits


def ratio(factors: Sequence[Factor], counts: FloatArray) -> float:
    """The product of ``factors`` for the surviving ``counts``."""
    return float(math.prod((factor.size / float(counts[factor.axis])) ** factor.power for factor in factors))
