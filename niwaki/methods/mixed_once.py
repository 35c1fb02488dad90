"""HESSO's scores for a method that chooses once: a weighted mix of criteria, averaged over one window."""

from __future__ import annotations

from typing import Any, final

from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.criteria.normalise import Compare
from niwaki.methods.chosen_once import OnceScores
from niwaki.methods.parts import Target
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.window_scores import Sampler


@final
class MixedOnce(OnceScores):
    """The weighted sum of criteria of ``sampler``, each over its mean among what can leave and is compared."""

    def __init__(self, units: TrainedUnits, target: Target, sampler: Sampler) -> None:
        self._candidates = target.removal.candidates(units.space)
        self._sampler = sampler

    @property
    def rows(self) -> int:
        """One per criterion, and two effects where there are gates."""
        return len(self._sampler.mix.weights)

    @property
    def compare(self) -> Compare:
        """As the criteria are."""
        return self._sampler.mix.compare

    @property
    def ranks(self) -> bool:
        """Scores are losses, and add up."""
        return False

    def sample(self) -> Tensor:
        """One value per criterion."""
        return self._sampler.measure()

    def saliency(self, means: Tensor, step: int) -> FloatArray:
        """The weighted sum."""
        return self._sampler.weighted(means, self._candidates, step)

    def settings(self) -> dict[str, Any]:
        """Criteria, how units are compared, and seed."""
        return self._sampler.settings()
