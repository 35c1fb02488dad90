"""Check numbers that users pass."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard

from niwaki.errors import MethodError


def is_whole(value: object) -> TypeGuard[int]:
    """Whether ``value`` is a whole number by type: Python's or numpy's, not a boolean."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a real number by type, not a boolean."""
    return isinstance(value, Real) and not isinstance(value, bool)


def whole_seed(seed: object) -> int:
    """A seed as torch's generators take it.

    Raises:
        MethodError: ``seed`` is not one.
    """
    if not is_whole(seed) or not -(2**63) <= seed < 2**63:
        raise MethodError(f"seed={seed!r} must be a whole number of 64 bits.")
    return int(seed)
