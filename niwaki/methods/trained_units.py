"""The units of a search space while an optimizer trains them: who is meant to go, who is at zero, what acts on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.edits.zeroed import zeroed_by_method
from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace, check_space
from niwaki.methods.checks import check_parameters
from niwaki.methods.hooks import check_optimizer
from niwaki.methods.shrinking import LiveSpace, LiveUnits
from niwaki.per_unit.fast import FastUnits
from niwaki.per_unit.plain import PlainUnits
from niwaki.per_unit.protocol import TO_ZERO, Units, UnitSubset


@dataclass(frozen=True, slots=True, eq=False)
class Merged:
    """A network whose units are trained in another form: LoRA pairs beside frozen weights.

    ``holder`` holds the frozen weights and never steps. ``whole`` is the space that plans are made from, in which the
    units that are trained have the numbers ``number`` [num_units].
    """

    holder: Optimizer
    whole: SearchSpace
    number: IntArray


@final
class TrainedUnits:
    """The units of ``space``, numbered as there for the whole training, whatever has been shrunk away meanwhile.

    ``leaving`` [num_units]: those that the update acts on; ``zero`` [num_units]: those that are kept at zero. ``live``:
    what of the space is still in the model. ``at_zero`` [num_units], on the device: what the update has brought to zero
    so far, if it says so. ``closure``: what the optimizer's step at hand was given.

    Raises:
        MethodError: the optimizer does not train the parameters of the space, or some are frozen.
    """

    def __init__(
        self, label: str, space: SearchSpace, optimizer: Optimizer, vectorised: bool, merged: Merged | None = None
    ) -> None:
        check_space(space)
        check_optimizer(label, optimizer)
        if merged is None:
            check_parameters(space, optimizer)
        self.label, self.space, self.optimizer, self.merged = label, space, optimizer, merged
        self.holder = optimizer if merged is None else merged.holder
        self.live = LiveSpace(space)
        self.closure: Callable[[], Any] | None = None
        nothing = np.zeros(space.num_units, dtype=bool)
        self.leaving: BoolArray = nothing
        self.zero: BoolArray = nothing
        self._kind: type[FastUnits | PlainUnits] = FastUnits if vectorised else PlainUnits
        self.engine: Units = self._kind(space, self.holder)
        self.at_zero = torch.zeros(space.num_units, dtype=torch.bool, device=self.device)

    @property
    def device(self) -> torch.device:
        """Where masks and sums over units are."""
        return self.engine.device

    @cached_property
    def subset(self) -> UnitSubset | None:
        """The units that the update acts on; None while it acts on no unit."""
        return self.engine.subset(self.leaving) if self.leaving.any() else None

    @cached_property
    def _zeros(self) -> UnitSubset:
        return self.engine.subset(self.zero)

    def mark(self, leaving: BoolArray, zero: BoolArray) -> None:
        """From now on the update acts on ``leaving`` and `clear` on ``zero``, both [num_units]."""
        self.leaving, self.zero = leaving.copy(), zero.copy()
        self.engine.forget()
        self._look_up_anew()

    def clear(self) -> None:
        """Set what is kept at zero to zero."""
        self._zeros.apply(TO_ZERO)

    def on_device(self, mask: BoolArray) -> Tensor:
        """A ``mask`` [num_units] where sums over units are."""
        return torch.from_numpy(mask).to(self.device)

    def of_live(self, values: Tensor, missing: bool) -> Tensor:
        """``values`` of the units that are still in the model as values of all units; ``missing``: that of others."""
        here = self.live.here
        if len(values) == len(here):
            return values
        return values.new_full((len(here),), missing).masked_scatter_(self.on_device(here), values)

    def rebuild(self) -> None:
        """Refer to the tensors of the model as they are now, after it has been shrunk."""
        here = self.live.here
        inner = self._kind(self.live.space, self.holder, np.flatnonzero(here), self.space.num_units)
        self.engine = LiveUnits(inner, here)
        self._look_up_anew()

    def plan(self, keep: BoolArray, about: dict[str, Any]) -> Plan:
        """The plan that keeps the units ``keep`` [num_units], for the model that is to be cut, and knows that a method
        has zeroed the rest.

        Raises:
            PlanError: no values of the model's attributes could follow the choice.
        """
        space = self.space
        if self.merged is not None:
            space, inner = self.merged.whole, keep
            keep = np.ones(space.num_units, dtype=bool)
            keep[self.merged.number] = inner
        plan = space.plan(keep, about)
        return plan.with_edits(zeroed_by_method(space, ~keep, plan.lengths))

    def _look_up_anew(self) -> None:
        for name in ("subset", "_zeros"):
            self.__dict__.pop(name, None)
