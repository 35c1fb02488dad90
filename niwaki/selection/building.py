"""Choices that can be built.

Where Python code compares sizes (``if x.shape != y.shape:``), some numbers of units would make it go another way, and
no plan can be made of them. Such numbers are few: a step or two beside them all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice

import numpy as np

from niwaki.core.space import BoolArray, SearchSpace

_STEPS, _TRIALS = 8, 512


def buildable(space: SearchSpace, keep: BoolArray, near: Callable[[BoolArray], Iterator[BoolArray]]) -> BoolArray:
    """``keep`` [num_units] if a plan can be made of it, else what comes of it by as few of the changes as possible that
    ``near`` lists, the best first; ``keep`` still where none of them helps."""
    wrong = _failing(space, keep)
    for _ in range(_STEPS):
        if not wrong:
            break
        best, fewest = keep, wrong
        for trial in islice(near(keep), _TRIALS):
            found = _failing(space, trial)
            if found < fewest:
                best, fewest = trial, found
            if not found:
                break
        if fewest == wrong:
            break
        keep, wrong = best, fewest
    return keep


def _failing(space: SearchSpace, keep: BoolArray) -> int:
    """How many sizes in Python code could not follow."""
    if not space.numbers.equations:
        return 0
    return len(space.numbers.solve(space.cost_model.counts(keep.astype(np.float64)))[1])
