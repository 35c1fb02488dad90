"""An update that changes units by a rule of their weights before and after the optimizer's step."""

from __future__ import annotations

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
from niwaki.selection import UNITS


@final
class RuleSteps:
    """One rule after the other on the units that leave.

    A rule that says how large units are never sets the largest of a group to zero, since a network that has lost a
    whole layer is dead; but a structure, which is a group of its own, may go.

    Raises:
        MethodError: the optimizer has no learning rate.
    """

    def __init__(self, units: TrainedUnits) -> None:
        check_rate(units.label, units.holder)
        self._units = units
        self._groups_of(units.live.space)

    def before(self, rule: UpdateRule) -> None:
        """Before the optimizer's step: keep x, where the rule needs it."""
        if self._units.subset is not None and rule.reads != {"after"}:
            self._units.subset.remember()

    def act(self, rule: UpdateRule) -> Tensor | None:
        """After it: let the rule act. The units that it left at zero, [num_units] on the device; None if it acts on
        none."""
        subset = self._units.subset
        if subset is None:
            return None
        update = self._spared(subset.change(rule))
        subset.apply(update)
        assert isinstance(update.keep, Tensor)
        self._units.at_zero = self._units.of_live(update.keep == 0, missing=True)
        return self._units.at_zero

    def _spared(self, update: UnitUpdate) -> UnitUpdate:
        """``update`` without the end of the unit of each group that is the largest, if that would end."""
        norm, space = update.norm, self._units.live.space
        if norm is None:
            return update
        if space is not self._space:  # the model has been shrunk
            self._groups_of(space)
        largest = norm.new_zeros(len(space.groups)).scatter_reduce_(0, self._group, norm, "amax")
        spare = (norm > 0) & (norm == largest[self._group]) & self._narrows
        return replace(update, keep=torch.where(spare, 1, torch.as_tensor(update.keep)))

    def _groups_of(self, space: SearchSpace) -> None:
        self._space, self._group = space, torch.from_numpy(group_of(space)).to(self._units.device)
        self._narrows = torch.from_numpy(UNITS.candidates(space)).to(self._units.device)


@final
class RuleUpdate(Update):
    """The rule of a step follows from the step alone, ``at(step, left)``, and so does its name, ``phase(step)``.
    ``settings``: the numbers of the rules. On the last step of a period nothing is done, since nothing is left then."""

    def __init__(
        self,
        units: TrainedUnits,
        at: Callable[[int, float | None], UpdateRule],
        phase: Callable[[int], str],
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._steps, self._at, self._phase, self._settings = RuleSteps(units), at, phase, dict(settings or {})

    def before(self, step: int, left: float | None) -> None:
        """Keep x of the units that leave."""
        if left != 0:
            self._steps.before(self._at(step, left))

    def act(self, step: int, left: float | None) -> None:
        """Let the rule act."""
        if left != 0:
            self._steps.act(self._at(step, left))

    def phase(self, step: int) -> str:
        """As given."""
        return self._phase(step)

    def settings(self) -> dict[str, Any]:
        """As given."""
        return dict(self._settings)

    def state(self) -> dict[str, Any]:
        """Nothing: what units are left with is in the parameters."""
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
