"""Draw random masks of units, on which beliefs about numbers and shapes are tested."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.space import BoolArray
from niwaki.solve.groups import SolvedGroups


def random_keep(units: SolvedGroups, rng: np.random.Generator, least: int = 1) -> BoolArray:
    """A random mask [num_units] that keeps at least ``least`` units of every group (of smaller groups, all but one) and
    respects the ties."""
    sizes = np.diff(units.starts)
    low = np.minimum(least, sizes - 1)
    kept = rng.integers(low, np.maximum(low, sizes) + 1)
    for tie in units.ties:
        times = int(rng.integers(0, tie.most + 1))
        for group, step in zip(tie.groups, tie.steps, strict=True):
            kept[group] = sizes[group] - times * step
    return _keep(units, kept, _order(units, rng))


def hard_keep(
    units: SolvedGroups, rng: np.random.Generator, least: int, share: float, ones: bool = True, others: bool = True
) -> BoolArray:
    """A random mask [num_units] that removes most units.

    It keeps at most ``share`` of every group, but at least ``least`` units where there are more. Where possible, the
    number kept (or of a tie's steps) is odd and has no factor in common with the group's size, so that no condition on
    multiples holds by chance. Groups of two keep one unit; they keep both if not ``ones``. All other groups stay whole
    if not ``others``.
    """
    sizes = np.diff(units.starts)
    low = np.minimum(least, sizes - 1)
    kept = rng.integers(low, np.maximum(low, (sizes * share).astype(np.int64)) + 1)
    kept = np.where(kept | 1 < sizes, kept | 1, kept)
    while (common := (np.gcd(kept, sizes) > 1) & (kept > 1)).any():
        kept = np.where(common, np.minimum(kept + 2, sizes - 1), kept)  # n - 1 and n have no common factor
    for tie in units.ties:
        groups, steps = np.array(tie.groups), np.array(tie.steps)
        most = int(min(tie.most, ((sizes[groups] - least) // steps).min()))
        most = most if most > 0 else tie.most
        times = int(rng.integers(max(int(most * (1 - share)), min(most, 1)), most + 1))
        times -= int(times > 1 and (sizes[groups[0]] // steps[0] - times) % 2 == 0)
        kept[groups] = sizes[groups] - times * steps
    whole = np.where(kept == 1, not ones, not others)
    for tie in units.ties:
        whole[list(tie.groups)] = whole[list(tie.groups)].any()
    return _keep(units, np.where(whole, sizes, kept), _order(units, rng))


def slight_keep(units: SolvedGroups, rng: np.random.Generator) -> BoolArray:
    """A random mask [num_units] that removes one unit of every group, or one step of a tie, but nothing of groups of
    two."""
    sizes = np.diff(units.starts)
    kept = np.where(sizes > 2, sizes - 1, sizes)
    for tie in units.ties:
        groups = np.array(tie.groups)
        kept[groups] = sizes[groups] - min(tie.most, 1) * np.array(tie.steps)
    return _keep(units, kept, _order(units, rng))


def separating_masks(units: SolvedGroups, rng: np.random.Generator) -> Iterator[BoolArray]:
    """A few masks that tell groups apart: for any two groups that are not tied, one mask keeps the fewest units of the
    first and all of the second. A purely random choice would miss some small groups."""
    sizes, least = np.diff(units.starts), np.diff(units.starts)
    least[:] = 1
    mover = np.arange(len(sizes))
    for tie in units.ties:
        groups = np.array(tie.groups)
        least[groups] = sizes[groups] - tie.most * np.array(tie.steps)
        mover[groups] = groups[0]
    order = _order(units, rng)
    for bit in range(max(1, len(sizes).bit_length())):
        small = (mover >> bit) & 1 == 1
        yield _keep(units, np.where(small, least, sizes), order)
        yield _keep(units, np.where(small, sizes, least), order)


def _order(units: SolvedGroups, rng: np.random.Generator) -> IntArray:
    """The units of each group in a random order."""
    group = np.repeat(np.arange(len(units.starts) - 1), np.diff(units.starts))
    order: IntArray = np.argsort(group + rng.random(len(units)))
    return order


def _keep(units: SolvedGroups, kept: IntArray, order: IntArray) -> BoolArray:
    """The mask of the first ``kept[g]`` units, in ``order``, of each group g."""
    sizes = np.diff(units.starts)
    rank = np.arange(len(units)) - np.repeat(units.starts[:-1], sizes)
    keep = np.zeros(len(units), dtype=bool)
    keep[order[rank < np.repeat(kept, sizes)]] = True
    return keep
