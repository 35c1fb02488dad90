"""The redundancy by which DHSPG and H2SPG choose: how training moves units, and how small they are (OTOv2, eq. 5)."""

from __future__ import annotations

from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.dying import structure_units
from niwaki.criteria.normalise import Compare, peers_of
from niwaki.criteria.registry import named
from niwaki.criteria.terms import EFFECTS, worth_by_effect
from niwaki.methods.checks import diverged
from niwaki.methods.chosen_once import OnceScores
from niwaki.methods.parts import Target
from niwaki.methods.trained_units import TrainedUnits
from niwaki.selection import STRUCTURES, costs, mixed, prices


@final
class Redundancy(OnceScores):
    """0.5 c + 0.5 a, from c = cos(x, d) and a = |g| / ||x||, each over its L2 norm.

    Of structures, x is all that dies with them, and a = sqrt(|g|) / ||x||, which does not grow with their size; what
    nothing but a gate makes has no redundancy, and is worth what its effect on the loss says, see
    `niwaki.criteria.terms`.
    """

    def __init__(self, units: TrainedUnits, target: Target, compare: Compare) -> None:
        self._units, self._target, self._compare = units, target, compare
        effects = () if units.gated is None else EFFECTS
        self._criteria = [named(name) for name in ("cosine", "average_magnitude", *effects)]  # 1 - c and 1 / a

    @property
    def rows(self) -> int:
        """c, a, and two effects where there are gates."""
        return len(self._criteria)

    @property
    def compare(self) -> Compare:
        """Among which units they are ranked."""
        return self._compare

    @property
    def ranks(self) -> bool:
        """The paper erases by decreasing redundancy. A sum over parts would count a whole stage as one structure."""
        return True

    def sample(self) -> Tensor:
        """c, a (infinite for a unit that is zero) and effects."""
        found, uses = self._units.engine.values(self._criteria, 0), self._units.engine.uses
        opposed, magnitude = found[:2] / uses
        return torch.cat([torch.stack([1 - opposed, 1 / magnitude]), found[2:]])

    def saliency(self, means: Tensor, step: int) -> FloatArray:
        """By how much each unit is less redundant than the most redundant of its peers."""
        space, target = self._units.space, self._target
        cosine, smallness, *effects = means.double().cpu().numpy()
        if not np.isfinite([cosine, *effects]).all() or not (smallness > 0).all():
            raise diverged("scores", step)
        zero = np.isinf(smallness)  # nothing is more redundant
        smallness = np.where(zero, 0.0, smallness)
        can, gated = target.removal.candidates(space), self._units.gated
        can = can if gated is None else can & ~gated
        where = np.where(can, peers_of(space, self._compare), -1) + 1  # what cannot leave is compared with nothing else
        redundancy = 0.5 * _over_norm(cosine, where) + 0.5 * _over_norm(smallness, where)
        most = np.full(where.max() + 1, -np.inf)
        np.maximum.at(most, where, redundancy)
        saliency = np.where(zero, 0.0, most[where] - redundancy)
        everything = np.ones(space.num_units, dtype=bool)
        whole = list(structure_units(space).values())
        if whole and target.removal is STRUCTURES:  # by redundancy alone: they are worth more if they cost more
            dense = costs(space.cost_model, everything, target.limits)
            saliency[whole] *= mixed(prices(space.cost_model, everything, target.limits), dense, target.limits)[whole]
        elif whole:  # per use of a weight
            saliency *= self._units.engine.uses.double().cpu().numpy()
        return saliency if gated is None else worth_by_effect(space, saliency, np.array(effects), gated, everything)

    def settings(self) -> dict[str, Any]:
        """Among what units are ranked."""
        return {"compare": self._compare}


def _over_norm(values: FloatArray, where: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FloatArray:
    """``values`` over their L2 norm among those with the same number in ``where``."""
    norms = np.sqrt(np.bincount(where, weights=values**2))
    return np.asarray(values / np.where(norms > 0, norms, 1.0)[where], np.float64)
