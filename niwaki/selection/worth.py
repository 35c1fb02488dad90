"""What a choice of units is worth.

Summed over the groups g of coupled channels,

    - sum_g  C_g^(3/2) / v_g,    v_g = the share kept of the saliency in g,    C_g = the cost of g in the dense network.

Shares make groups of different scale comparable, and a group that has lost much gives the rest ever more reluctantly:
no layer collapses.

Costs are products of widths, so with the logarithm of v_g in the place of - 1 / v_g all ways to meet a limit are worth
the same if units are equally salient, and a slight difference in how saliency is spread decides which group leaves
almost alone: of a small pretrained Llama the residual stream, whose loss nothing makes up for. With - 1 / v_g the best
is in between. C_g alone lets all groups lose like shares; with C_g^(3/2) a group that much of the network runs through
keeps more, by the fourth root of its cost.
Convolutional networks trained from scratch end alike with any of these, but not without C_g: residual streams, being
the most expensive, then shrink most. (Where the budget is of latency C_g is no latency: see `WORTH_BY`.)
"""

from __future__ import annotations

import numpy as np

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Among, group_of, peers_of

_LEAST = 1e-6  # a share below it is as good as none
_TINY = 1e-300


class Worth:
    """The worth of units, beside those that stay of their peers: their group, all isomorphic groups, or for
    ``compare="space"`` none, where it is the saliency itself. ``share`` [num_units]: the saliency of each over that of
    all its peers, or of all units.

    ``start`` [num_units] are the units there are; others left before, and are taken to have been like them. ``weight``
    [groups]: of groups that are else alike one of twice the weight keeps twice the share (its worth counts four times).
    """

    def __init__(
        self,
        space: SearchSpace,
        saliency: FloatArray,
        start: BoolArray,
        compare: Among = "group",
        weight: FloatArray | None = None,
    ) -> None:
        self._by_itself = compare == "space"
        self._weight = np.ones(space.num_units) if weight is None else weight[group_of(space)]
        self._peers = peers_of(space, compare)
        present = np.bincount(self._peers, weights=start)
        total = np.bincount(self._peers, weights=np.where(start, saliency, 0.0))
        whole = np.maximum(total / np.maximum(present, 1) * np.bincount(self._peers), _TINY)
        self.share = saliency / whole[self._peers]  # sums over several peers lose nothing of small saliencies

    def __call__(self, units: IntArray, before: FloatArray, after: FloatArray, price: FloatArray) -> FloatArray:
        """What each of ``units`` is worth, whose peers keep the share ``before`` with it and ``after`` without.

        ``price`` [num_units]: what units cost in the dense network.
        """
        if self._by_itself:
            return self.share[units]
        peers = self._peers[units]
        cost = np.bincount(self._peers, weights=price)[peers]
        more, less = (np.maximum(share, _LEAST) for share in (before, after))
        return np.asarray(self._weight[units] ** 2 * cost**1.5 * (1 / less - 1 / more), np.float64)

    def of(self, keep: BoolArray, price: FloatArray) -> float:
        """What the choice ``keep`` [num_units] is worth as a whole."""
        kept = np.bincount(self._peers, weights=np.where(keep, self.share, 0.0))
        if self._by_itself:
            return float(kept.sum())
        weight = np.bincount(self._peers, weights=self._weight**2) / np.maximum(np.bincount(self._peers), 1)
        cost = np.bincount(self._peers, weights=price)
        return -float((weight * cost**1.5 / np.maximum(kept, _LEAST)).sum())

    def total(self, keep: BoolArray) -> FloatArray:
        """The share kept of the peers of each unit, [num_units]."""
        kept = np.bincount(self._peers, weights=np.where(keep, self.share, 0.0))
        return np.asarray(kept[self._peers], np.float64)

    def held(self, which: BoolArray, key: FloatArray, way: int) -> FloatArray:
        """The share of each unit in ``which`` and of its peers there that come before it (``way`` 1) or after it
        (-1) in the order of ``key``, [num_units]."""
        held = np.zeros(len(key))
        units = np.flatnonzero(which)
        if len(units):
            units = units[np.lexsort((key[units], self._peers[units]))][::way]
            total = np.cumsum(self.share[units])
            first = np.append(True, np.diff(self._peers[units]) != 0)
            before = (total - self.share[units])[first]
            held[units] = total - before[np.cumsum(first) - 1]
        return held
