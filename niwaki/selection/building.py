"""Choices that can be built.

Where Python code compares sizes (``if x.shape != y.shape:``), some numbers of units would make it go another way, and
no plan can be made of them; others the description of the model does not accept (`niwaki.core.integrations`). Mostly
a step or two beside them all is well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from itertools import islice

import numpy as np

from niwaki.core.space import BoolArray, SearchSpace

_STEPS, _TRIALS = 8, 512

Near = Callable[[BoolArray, BoolArray], Iterator[BoolArray]]


def buildable(space: SearchSpace, keep: BoolArray, near: Near) -> BoolArray:
    """``keep`` [num_units] if a plan can be made of it, else what comes of it by as few of the changes as possible that
    ``near`` lists, the best first; ``keep`` still where none of them helps.

    ``near`` is also given the units [num_units] on which the sizes depend that cannot follow: other changes are no use.
    """
    wrong = failing(space, keep)
    for _ in range(_STEPS):
        if not wrong:
            break
        best, fewest = keep, wrong
        for trial in islice(near(keep, depending(space, wrong)), _TRIALS):
            found = failing(space, trial)
            if len(found) < len(fewest):
                best, fewest = trial, found
            if not found:
                break
        if len(fewest) == len(wrong):
            break
        keep, wrong = best, fewest
    return keep


def failing(space: SearchSpace, keep: BoolArray) -> list[int]:
    """The numbers of the equations that could not follow."""
    if not space.numbers.equations:
        return []
    return space.numbers.solve(space.cost_model.counts(keep.astype(np.float64)))[1]


def depending(space: SearchSpace, equations: Collection[int]) -> BoolArray:
    """Which units [num_units] some equations depend on."""
    return space.cost_model.counts.depending(space.numbers.axes_of(equations))
