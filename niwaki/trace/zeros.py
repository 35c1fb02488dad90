"""Zeros that cost nothing until somebody looks at them: slices of large pieces that the system maps on demand."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

_PIECE = 2**26  # bytes; less than half of it, and the C library would rather clear memory that it has already
_ALIGNED = 64
_NUMPY: dict[torch.dtype, type[np.generic]] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.float16: np.float16,
    torch.int64: np.int64,
}


class Zeros:
    """Hands out tensors of zeros that have no memory in common. A piece lives as long as any tensor in it."""

    def __init__(self) -> None:
        self._piece: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._used = 0

    def tensor(
        self, shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Zeros of this shape and arrangement."""
        if device.type != "cpu" or 0 in shape:
            return torch.zeros(_span(shape, stride), dtype=dtype, device=device).as_strided(shape, stride)
        wide = dtype.itemsize
        size = _span(shape, stride) * wide
        start = self._start(size)
        kind = _NUMPY.get(dtype)
        if kind is None:  # numpy has no such numbers
            plain = torch.from_numpy(np.ndarray(size, np.uint8, self._piece, start))
            return plain.view(dtype).as_strided(shape, stride)
        return torch.from_numpy(np.ndarray(shape, kind, self._piece, start, [step * wide for step in stride]))

    def _start(self, size: int) -> int:
        """Where in the piece at hand, a new one if need be, ``size`` bytes begin that nobody has."""
        start = -self._used // _ALIGNED * -_ALIGNED
        if start + size > len(self._piece):
            self._piece, start = np.zeros(max(size, _PIECE), np.uint8), 0
        self._used = start + size
        return start


def _span(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """How many entries there are from the first to the last."""
    return 0 if 0 in shape else 1 + sum([(size - 1) * step for size, step in zip(shape, stride, strict=True)])
