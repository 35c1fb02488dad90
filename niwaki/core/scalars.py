"""What a user may mean by a number."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether ``value`` is a whole number by type: Python's or numpy's, and no truth value."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> TypeGuard[float]:
    """Whether ``value`` is a real number by type, and no truth value."""
    return isinstance(value, Real) and not isinstance(value, bool)
