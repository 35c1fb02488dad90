"""Levels: the numbers of units that a group can have, step by step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice, zip_longest

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.selection.steps import Widths


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """The steps by which groups can shrink.

    A block is a group, or several that are tied; it stands at level j after j of its ties' steps. Forbidden levels are
    skipped. The c-th removed unit of group g is removed on the way to level ``reached[first of g + c - 1]``, from the
    level ``left`` at the same index; ``reached`` is -1 if it is never removed.
    """

    block: IntArray  # [groups]
    step: IntArray  # [groups], units per level
    reached: IntArray  # [num_units]
    left: IntArray  # [num_units]

    @classmethod
    def of(cls, space: SearchSpace, steps: Widths) -> Levels:
        """The levels of all blocks of ``space``."""
        groups = len(space.groups)
        tied = [(tie.groups, tie.steps, tie.most) for tie in space.ties]
        taken = {group for members, _, _ in tied for group in members}
        blocks = tied + [((g,), (1,), space.groups[g].units - 1) for g in range(groups) if g not in taken]
        block, step = np.empty(groups, np.int64), np.empty(groups, np.int64)
        multiples = steps.multiples(space).tolist()
        reached, left = np.full(space.num_units, -1), np.full(space.num_units, -1)
        for number, (members, per_level, most) in enumerate(blocks):
            levels = np.arange(most + 1)
            may = np.ones(most + 1, dtype=bool)
            for member, per in zip(members, per_level, strict=True):
                full = space.groups[member].units
                may &= steps.allowed(full, full - per * levels, multiples[member])
            allowed = np.flatnonzero(may)  # level 0 is always allowed
            for member, per in zip(members, per_level, strict=True):
                block[member], step[member] = number, per
                leaving = np.arange(1, per * allowed[-1] + 1)
                place = np.searchsorted(allowed, -(-leaving // per))
                first = space.groups[member].first
                reached[first : first + len(leaving)] = allowed[place]
                left[first : first + len(leaving)] = allowed[place - 1]
        return cls(block, step, reached, left)


def leaving(space: SearchSpace, gone: BoolArray, steps: Widths) -> BoolArray:
    """The units of ``gone`` [num_units] that can be removed: as many as sizes, steps and ties of ``space`` and the
    sizes in the model's code allow.

    >>> import niwaki, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    >>> space = niwaki.search_space(net, torch.randn(1, 4))
    >>> leaving(space, np.array([True, False, True, True, False, False]), Widths(round_to=2)).astype(int)
    array([1, 0, 1, 0, 0, 0])
    """
    levels = Levels.of(space, steps)
    level = np.full(int(levels.block.max(initial=-1)) + 1, np.iinfo(np.int64).max)
    may: dict[int, IntArray] = {}
    for number, group in enumerate(space.groups):
        block, reached = int(levels.block[number]), levels.reached[group.numbers]
        may[block] = np.unique(np.append(reached[reached >= 0], 0))
        level[block] = min(level[block], int(gone[group.numbers].sum()) // int(levels.step[number]))
    blocks = levels.block.tolist()

    def gone_at(reached: dict[int, int]) -> BoolArray:
        found = np.zeros(space.num_units, dtype=bool)
        for number, group in enumerate(space.groups):
            units = group.first + np.flatnonzero(gone[group.numbers])
            found[units[: reached[blocks[number]] * int(levels.step[number])]] = True
        return found

    def fewer(keep: BoolArray, which: BoolArray) -> Iterator[BoolArray]:
        now = {
            blocks[number]: int((~keep)[group.numbers].sum()) // int(levels.step[number])
            for number, group in enumerate(space.groups)
        }
        touched = {blocks[number] for number, group in enumerate(space.groups) if which[group.numbers].any()}
        lower = [
            [(block, at) for at in may[block][may[block] < now[block]][::-1].tolist()] for block in sorted(touched)
        ]
        for some in zip_longest(*lower):  # by one step each first
            yield from (~gone_at(now | {block: at}) for block, at in filter(None, some))

    most = {block: int(may[block][may[block] <= level[block]].max()) for block in may}
    return ~buildable(space, ~gone_at(most), fewer)


_STEPS, _TRIALS = 8, 512


Near = Callable[[BoolArray, BoolArray], Iterator[BoolArray]]


def buildable(space: SearchSpace, keep: BoolArray, near: Near) -> BoolArray:
    """``keep`` [num_units] if a plan can be made of it, else with as few of the changes as possible that ``near``
    lists, the best first; ``keep`` itself where none of them helps.

    ``near`` is also given the units [num_units] on which the sizes depend that cannot follow: other changes cannot
    help.
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
    """The units [num_units] that some equations depend on."""
    return space.cost_model.counts.depending(space.numbers.axes_of(equations))
