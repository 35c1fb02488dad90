"""What a method of `niwaki.prune` is that makes its plan itself, from the dense network and in one step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.criteria.losses import Loss
from niwaki.post_training.iterative import Repair
from niwaki.selection.budget import Budget


class OwnChoice(ABC):
    """A choice in place of a criterion. ``name``: for reports; ``needs``: what it needs data for; ``repair``: what
    `niwaki.prune` does by default."""

    name: ClassVar[str]
    needs: ClassVar[str]
    repair: ClassVar[Repair]

    @abstractmethod
    def plan(self, space: SearchSpace, budget: Budget | None, batches: Sequence[Any], loss_fn: Loss, seed: int) -> Plan:
        """The plan for ``space`` within ``budget``; without one, if the method itself says how much is to go."""
