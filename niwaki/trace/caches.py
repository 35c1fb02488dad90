"""Empty the function caches that hold results of a run without arithmetic.

The content of a `functools.lru_cache` can be neither read nor restored. Results of such a run, zeros in the place of
numbers, would be returned in every later pass of the user, so the cache is emptied and the functions compute again.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import lru_cache
from types import FrameType, ModuleType
from typing import Any

from torch import Tensor

_DEPTH = 4  # a cached result may be a tensor, or a container or object that holds it
_MOST = 2**10  # the number of holders that are followed
_CACHE = type(lru_cache(len))


def empty_caches_of(tensors: Sequence[Tensor]) -> None:
    """Empty the caches of functions that hold any of ``tensors``."""
    seen = {id(tensors)}
    level: list[Any] = list(tensors)
    for _ in range(_DEPTH):
        seen |= {id(level), *map(id, level)}
        holders = gc.get_referrers(*level)
        level = []
        for holder in holders:
            if isinstance(holder, _CACHE):
                holder.cache_clear()
            elif id(holder) not in seen and not isinstance(holder, (FrameType, ModuleType, type)):
                level.append(holder)
        if not 0 < len(level) <= _MOST:
            return
