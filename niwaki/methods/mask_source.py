"""Where a mask that is learnt comes from, until it is fixed."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray
from niwaki.methods.parts import Resumable
from niwaki.methods.stages import Stages


class MaskSource(Resumable):
    """Learns beside the training of a network which units it needs. ``taken``: how many steps it has taken."""

    taken: int

    @property
    @abstractmethod
    def inside(self) -> bool:
        """Whether the model runs under its mask now, in a block that puts its weights back."""

    @abstractmethod
    def due(self, step: int, stages: Stages) -> bool:
        """Whether it takes a step of its own before the optimizer's step number ``step``."""

    @abstractmethod
    def check_first(self, step: int, stages: Stages) -> None:
        """Raise `MethodError` if ``step``, before which the first step is to be taken, is too late to begin."""

    @abstractmethod
    def check_taken(self, step: int, stages: Stages) -> None:
        """Raise `MethodError` if the mask is to be fixed after ``step``, and no step has been taken."""

    @abstractmethod
    def step(self, progress: float, batch: Any = None) -> None:
        """One step at the share ``progress`` of its time.

        Raises:
            MethodError: nothing can be learnt. All is as it was then.
        """

    @abstractmethod
    def keeps(self) -> BoolArray:
        """The units [num_units] that its own mask keeps."""

    @abstractmethod
    def holds(self) -> BoolArray:
        """The units [num_units] that train as they are for now; what happens to the others is for the update to say."""

    @abstractmethod
    def worth(self) -> FloatArray:
        """What each unit [num_units] is worth in the choice under the budget."""

    @abstractmethod
    def protected(self) -> BoolArray:
        """The units [num_units] that no budget takes, if it can be met without."""

    @abstractmethod
    def let_go(self) -> None:
        """The training goes on without the method; a warning says what is lost."""

    @abstractmethod
    def fixed(self, keep: BoolArray) -> None:
        """From now on the units ``keep`` [num_units] stay, and no others."""
