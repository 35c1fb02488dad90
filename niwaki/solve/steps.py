"""Units that can leave only by twos, fours or eights, because an operator wants some size to stay a multiple."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable
from dataclasses import dataclass

import numpy as np

from niwaki.core.counts import IntArray


@dataclass(frozen=True, slots=True, eq=False)
class _Held:
    """``components`` leave by ``multiple`` [n] of their kind, for the reason ``why``."""

    components: IntArray
    multiple: IntArray
    why: int


class UnitSteps:
    """``multiple`` [components]: by how many of its kind each may leave; 1 where nothing says otherwise.

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
        """Let every axis (rows of components [n, K], 0 for what stays) lose a multiple of ``step`` positions, until
        ``key`` is released. Returns whether that asks for anything new.

        A unit with k positions on an axis leaves by step / gcd(step, k). Where a position depends on several units, it
        is enough that each of them leaves by steps.
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
        """The reason for which a component leaves by more than one."""
        return next(held.why for held in self._held.values() if component in held.components)

    def _sum_up(self) -> None:
        self.multiple = np.ones(self._size, dtype=np.int64)
        for held in self._held.values():
            self.multiple[held.components] = np.lcm(self.multiple[held.components], held.multiple)
