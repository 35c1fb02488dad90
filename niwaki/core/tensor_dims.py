"""One dimension of one tensor: the units that own its positions, and what it is to them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.describe import counted


class Role(Enum):
    """What the entries of a dimension are to the units that own its positions.

    >>> [role.name for role in Role if role.zeroed_by_method]
    ['PRODUCER', 'ZEROED_CONSUMER']
    """

    PRODUCER = "producer"
    """They compute the units: weights, biases, affine parameters of norms."""

    CONSUMER = "consumer"
    """They read the units."""

    ZEROED_CONSUMER = "consumer, zeroed too"
    """They read the units, and something on the way maps zero to another value: a method has to zero them as well."""

    DIRECTION = "direction"
    """They are the direction of a weight norm: they leave with the unit, but keep their values while it is zeroed."""

    @property
    def produces(self) -> bool:
        """Whether these entries compute the units."""
        return self is Role.PRODUCER

    @property
    def consumes(self) -> bool:
        """Whether these entries read the units."""
        return self is Role.CONSUMER or self is Role.ZEROED_CONSUMER

    @property
    def zeroed_by_method(self) -> bool:
        """Whether a method drives these entries to zero with their units."""
        return self is Role.PRODUCER or self is Role.ZEROED_CONSUMER

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True, eq=False)
class TensorDim:
    """One dimension of one tensor, and the units that each of its positions depends on.

    ``units`` [n, K] is padded with ``num_units`` (always kept). A position is removed when any of its units is.
    ``parameter``: the tensor is a parameter, and not a buffer. Tied dimensions share the array ``units``.
    """

    tensor: str
    dim: int
    units: IntArray
    role: Role
    parameter: bool

    @property
    def produces(self) -> bool:
        """``role.produces``, as it was called before there were roles."""
        warnings.warn("produces is role.produces now.", DeprecationWarning, stacklevel=2)
        return self.role.produces

    @property
    def driven(self) -> bool:
        """``role.zeroed_by_method``, as it was called before there were roles."""
        warnings.warn("driven is role.zeroed_by_method now.", DeprecationWarning, stacklevel=2)
        return self.role.zeroed_by_method


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Slice:
    """What the units of a group own of one dimension: ``index[u]`` holds the positions of unit u, [U, K]."""

    whole: TensorDim
    index: IntArray

    @property
    def tensor(self) -> str:
        """The name of the parameter or buffer."""
        return self.whole.tensor

    @property
    def dim(self) -> int:
        """Its dimension."""
        return self.whole.dim

    @property
    def role(self) -> Role:
        """What these entries are to the units."""
        return self.whole.role

    @property
    def parameter(self) -> bool:
        """Whether the tensor is a parameter, and not a buffer."""
        return self.whole.parameter

    def __str__(self) -> str:
        return f"{self.tensor} dim {self.dim}: {counted(self.index.shape[1], 'position')} per unit ({self.role})"

    __repr__ = __str__


def slices_by_group(dims: Sequence[TensorDim], starts: IntArray) -> list[tuple[Slice, ...]]:
    """The slices of each group, in the order of ``dims``. Group g has the units ``starts[g] .. starts[g + 1] - 1``,
    which own equally many positions of any dimension."""
    slices: list[list[Slice]] = [[] for _ in starts[1:]]
    parted: dict[int, list[tuple[int, IntArray]]] = {}  # by the identity of the array, which tied dimensions share
    for dim in dims:
        if id(dim.units) not in parted:
            parted[id(dim.units)] = list(_by_group(dim.units, starts))
        for group, index in parted[id(dim.units)]:
            slices[group].append(Slice(dim, index))
    return [tuple(found) for found in slices]


def _by_group(units: IntArray, starts: IntArray) -> Iterator[tuple[int, IntArray]]:
    """The groups among the units [n, K] of the positions of a dimension, and for each of their units its positions."""
    positions = np.repeat(np.arange(len(units)), units.shape[1])
    units = units.reshape(-1)
    if not bool((units[1:] >= units[:-1]).all()):
        order = np.argsort(units, kind="stable")
        units, positions = units[order], positions[order]
    ends = np.searchsorted(units, starts)
    for group in np.flatnonzero(np.diff(ends)).tolist():
        size = starts[group + 1] - starts[group]
        yield group, positions[ends[group] : ends[group + 1]].reshape(size, -1)
