"""Join several scores by what they rank, and not by their values: the Borda count."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import SearchSpace, check_space
from niwaki.criteria.mix import finite
from niwaki.criteria.normalise import Compare, check_compare, peers_of
from niwaki.criteria.score import Scores
from niwaki.errors import MethodError


def consensus(space: SearchSpace, scores: Sequence[Scores], compare: Compare = "group") -> Scores:
    """The sum over ``scores`` of the rank of each unit among its peers: the number of those that it exceeds, and half
    of those that it equals. No criterion outweighs another, whatever its scale (arXiv 2411.14345).

    Args:
        space: the space that was scored.
        scores: what `niwaki.score` returned for it, by each of several criteria.
        compare: the peers of each unit: those of its ``group``, of all ``isomorphic`` groups, or of the whole
            ``space``. Structures are peers of one another unless that is the whole space.

    Raises:
        MethodError: there are no scores, or they are of another space.

    >>> import niwaki, torch
    >>> from niwaki.criteria import consensus
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    >>> space = niwaki.search_space(model, torch.randn(1, 2))
    >>> votes = [niwaki.score(space, lambda _: values) for values in ([1, 2, 3], [10, 300, 20], [5, 5, 9])]
    >>> consensus(space, votes).values
    array([0.5, 3.5, 5. ])
    """
    check_space(space)
    check_compare(compare)
    if not scores or any(np.shape(one.values) != (space.num_units,) for one in scores):
        raise MethodError(
            f"A consensus needs scores of the {space.num_units} units of this space, one or more: "
            "consensus(space, [niwaki.score(space, 'magnitude'), niwaki.score(space, 'lamp')])."
        )
    peers = peers_of(space, compare)
    total = np.zeros(space.num_units)
    for one in scores:
        total += _ranks(finite(space, one.values, one.criterion), peers)
    silent = tuple(sorted({unit for one in scores for unit in one.silent}))
    return Scores(total, f"consensus of {', '.join(one.criterion for one in scores)}", compare, silent)


def _ranks(values: FloatArray, peers: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FloatArray:
    ranks = np.zeros(len(values))
    for number in np.unique(peers):
        units = np.flatnonzero(peers == number)
        _, which, times = np.unique(values[units], return_inverse=True, return_counts=True)
        below = np.append(0, times.cumsum())[:-1]
        ranks[units] = below[which] + (times[which] - 1) / 2
    return ranks
