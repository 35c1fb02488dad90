"""What can decide in a choice instead of scores: something that learns on batches which units a network needs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from niwaki.core.edits import Edit
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.selection.budget import Budget


class MaskLearner(ABC):
    """Learns a mask of the units of a network whose weights do not change, for `niwaki.choose`."""

    name: str

    @abstractmethod
    def learn(self, space: SearchSpace, budget: Budget) -> BoolArray:
        """The units to keep, [num_units], as near below the limits of ``budget`` as selection comes. The model is as it
        was afterwards.

        Raises:
            BudgetError: the budget cannot be met.
            MethodError: nothing can be learnt from what the learner was given.
        """

    @abstractmethod
    def records(self) -> tuple[Edit, ...]:
        """What the plan has to know of the weights that it is for, besides what it cuts."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """How it has learnt, as plain data for the provenance of a plan."""
