"""An update that changes units by a rule of their weights before and after the optimizer's step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from niwaki.core.isomorphic import group_of
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.parts import Update
from niwaki.methods.trained_units import TrainedUnits
from niwaki.per_unit.protocol import UnitUpdate, UpdateRule


class Rules(ABC):
    """Which `UpdateRule` acts on which step."""

    @abstractmethod
    def at(self, step: int, left: float | None) -> UpdateRule:
        """The rule of ``step``; ``left``: see `Selector.left`."""

    @abstractmethod
    def acted(self, step: int, zero: Tensor) -> None:
        """After it: ``zero`` [num_units], on the device, are the units that it left at zero."""

    @abstractmethod
    def phase(self, step: int) -> str:
        """What happens on ``step``, in one word."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What must be the same when a run is resumed, as plain data."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What changes from step to step, as tensors and plain numbers."""

    @abstractmethod
    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""

    @abstractmethod
    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` if ``state`` is not what `state` gives; change nothing."""


@final
class RuleUpdate(Update):
    """The units that leave become what ``rules`` say.

    A rule that says how large units are never sets the largest of a group to zero, since a network that has lost a
    whole layer is dead.

    Raises:
        MethodError: the optimizer has no learning rate.
    """

    def __init__(self, units: TrainedUnits, rules: Rules) -> None:
        check_rate(units.label, units.holder)
        self._units, self.rules = units, rules
        self._groups_of(units.live.space)

    def before(self, step: int, left: float | None) -> None:
        """Keep x of the units that leave, where the rule needs it."""
        subset = self._units.subset
        if subset is not None and left != 0 and self.rules.at(step, left).reads != {"after"}:
            subset.remember()

    def act(self, step: int, left: float | None) -> None:
        """Let the rule act; not on the last step of a period, after which nothing is left anyway."""
        subset = self._units.subset
        if subset is None or left == 0:
            return
        update = self._spared(subset.change(self.rules.at(step, left)))
        subset.apply(update)
        assert isinstance(update.keep, Tensor)
        zero = self._units.of_live(update.keep == 0, missing=True)
        self._units.at_zero = zero
        self.rules.acted(step, zero)

    def _spared(self, update: UnitUpdate) -> UnitUpdate:
        """``update`` without the end of the unit of each group that is the largest, if that would end."""
        norm, space = update.norm, self._units.live.space
        if norm is None:
            return update
        if space is not self._space:  # the model has been shrunk
            self._groups_of(space)
        largest = norm.new_zeros(len(space.groups)).scatter_reduce_(0, self._group, norm, "amax")
        spare = (norm > 0) & (norm == largest[self._group])
        return replace(update, keep=torch.where(spare, 1, torch.as_tensor(update.keep)))

    def _groups_of(self, space: SearchSpace) -> None:
        self._space, self._group = space, torch.from_numpy(group_of(space)).to(self._units.device)

    def phase(self, step: int) -> str:
        """That of the rules."""
        return self.rules.phase(step)

    def settings(self) -> dict[str, Any]:
        """Those of the rules."""
        return self.rules.settings()

    def state(self) -> dict[str, Any]:
        """That of the rules."""
        return self.rules.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; x is kept anew."""
        self.rules.restore(state)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """What the rules ask for."""
        self.rules.check_state(state)


@final
class RulesByStep(Rules):
    """Rules that follow from the step alone. ``at`` and ``phase``: see `Rules`; ``settings``: the rules' numbers."""

    def __init__(
        self,
        at: Callable[[int, float | None], UpdateRule],
        phase: Callable[[int], str],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._at, self._phase, self._settings = at, phase, dict(settings or {})

    def at(self, step: int, left: float | None) -> UpdateRule:
        """As given."""
        return self._at(step, left)

    def acted(self, step: int, zero: Tensor) -> None:
        """Nothing follows from it."""

    def phase(self, step: int) -> str:
        """As given."""
        return self._phase(step)

    def settings(self) -> dict[str, Any]:
        """As given."""
        return dict(self._settings)

    def state(self) -> dict[str, Any]:
        """Nothing changes."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Nothing to continue."""

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Nothing to check."""


def check_rate(label: str, optimizer: Optimizer) -> None:
    """Raise `MethodError` if the param groups of ``optimizer`` have no learning rate."""
    if any(group.get("lr") is None for group in optimizer.param_groups):
        raise MethodError(
            f"{label} takes its steps with the optimizer's learning rate, but {type(optimizer).__qualname__} "
            "has none in its param groups. Add 'lr' to each of them."
        )


def follows_gradient(optimizer: Optimizer) -> bool:
    """Whether the steps of ``optimizer`` are as long as the gradient is: SGD's, not those that normalise it."""
    return isinstance(optimizer, SGD)
