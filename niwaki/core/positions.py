"""A sequence of whole numbers in one array: the kept positions of a group or of a dimension can be millions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

from niwaki.core.counts import IntArray


class Positions(Sequence[int]):
    """Like a tuple of ``int``, and equal to the tuple of the same numbers."""

    __slots__ = ("array", "ascending")

    def __init__(self, numbers: Iterable[int] | IntArray) -> None:
        array = np.array(numbers if isinstance(numbers, np.ndarray) else list(numbers), dtype=np.int64)
        array.setflags(write=False)
        self.array: IntArray = array
        self.ascending = bool((array[1:] > array[:-1]).all()) and (not len(array) or bool(array[0] >= 0))

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Positions:
        """The same numbers; themselves, if they are kept so already."""
        return numbers if isinstance(numbers, Positions) else cls(numbers)

    @classmethod
    def from_json(cls, numbers: object) -> Positions:
        """A list of whole numbers as it was read from JSON.

        Raises:
            TypeError: something else was read, such as 1.5 or "1".
        """
        array = np.array(numbers)
        if not isinstance(numbers, list) or (len(numbers) and (array.ndim != 1 or array.dtype.kind != "i")):
            raise TypeError("positions are not whole numbers")
        return cls(array.astype(np.int64))

    def __len__(self) -> int:
        return len(self.array)

    @overload
    def __getitem__(self, which: int) -> int: ...

    @overload
    def __getitem__(self, which: slice) -> tuple[int, ...]: ...

    def __getitem__(self, which: int | slice) -> int | tuple[int, ...]:
        found = self.array[which].tolist()
        return tuple(found) if isinstance(which, slice) else int(found)

    def __iter__(self) -> Iterator[int]:
        return iter(self.array.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Positions):
            return np.array_equal(self.array, other.array)
        return tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> IntArray:
        return self.array.astype(dtype or np.int64, copy=bool(copy))


def whole_number(value: object) -> int:
    """A number as it was read from JSON.

    Raises:
        TypeError: ``value`` is not a whole number.
    """
    if type(value) is not int:
        raise TypeError(f"{value!r} is no whole number")
    return value
