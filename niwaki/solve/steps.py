"""Remember which units can be removed only by twos, fours or eights, because an operator needs a multiple."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """``components`` [n] whose groups have to lose multiples of ``multiple`` [n] units, for the reason ``why``."""

    components: IntArray
    multiple: IntArray
    why: int


class UnitSteps:
    """``multiple`` [components]: how many units of its group must be removed at a time; 1 by default.

    >>> steps = UnitSteps(5)
    >>> steps.hold("rank", [np.array([[1], [2], [3], [3]])], 4, why=0), steps.multiple
    (True, array([1, 4, 4, 2, 1]))
    >>> steps.release("rank"); steps.multiple
    array([1, 1, 1, 1, 1])
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._held: dict[Hashable, _Held] = {}
        self.multiple: IntArray = np.ones(size, dtype=np.int64)

    def __bool__(self) -> bool:
        return bool(self._held)

    def hold(self, key: Hashable, axes: Iterable[IntArray], step: int, why: int) -> bool:
        """Make every axis (rows of components [n, K], 0 for pinned positions) lose a multiple of ``step`` positions
        until ``key`` is released. Return whether that is a new condition.

        Units with k positions on an axis are removed step / gcd(step, k) at a time. Where a position depends on several
        units, each of these is removed ``step`` at a time, which is enough.
        """
        wanted: dict[int, int] = {}
        for rows in axes:
            plain = (rows != 0).sum(axis=1) == 1
            for part, counted in ((rows[plain], True), (rows[~plain], False)):
                found, times = np.unique(part[part != 0], return_counts=True)
                for component, positions in zip(found.tolist(), times.tolist(), strict=True):
                    own = step // math.gcd(step, positions) if counted else step
                    wanted[component] = math.lcm(wanted.get(component, 1), own)
        components = np.array([c for c, own in wanted.items() if own > 1], dtype=np.int64)
        multiple = np.array([wanted[c] for c in components.tolist()], dtype=np.int64)
        if not (self.multiple[components] % multiple).any():
            return False
        self._held[key] = _Held(components, multiple, why)
        self._sum_up()
        return True

    def release(self, key: Hashable) -> None:
        """Take back what is held under ``key``."""
        if self._held.pop(key, None) is not None:
            self._sum_up()

    def why(self, component: int) -> int:
        """The number of the reason why a component cannot be removed alone."""
        return next(held.why for held in self._held.values() if component in held.components)

    def _sum_up(self) -> None:
        self.multiple = np.ones(self._size, dtype=np.int64)
        for held in self._held.values():
            self.multiple[held.components] = np.lcm(self.multiple[held.components], held.multiple)
