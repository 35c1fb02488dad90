"""The units of a search space while an optimizer trains them: who is meant to go, who is at zero, what acts on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.dying import structure_units
from niwaki.core.edits.zeroed import zeroed_by_method
from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace, check_space
from niwaki.methods.checks import check_parameters
from niwaki.methods.hooks import check_optimizer
from niwaki.methods.shrinking import LiveSpace, LiveUnits
from niwaki.per_unit.fast import FastUnits
from niwaki.per_unit.gated_units import GatedUnits
from niwaki.per_unit.plain import PlainUnits
from niwaki.per_unit.protocol import TO_ZERO, Units, UnitSubset
from niwaki.per_unit.trained_gates import TrainedGates
from niwaki.selection import UNITS, Removal


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
    so far, if it says so. ``closure``: what the optimizer's step at hand was given. ``gates``: those of structures
    that can leave by ``removal`` and that weights alone do not make; None if there are none. ``removal``: what is to
    leave.

    Raises:
        MethodError: the optimizer does not train the parameters of the space, or some are frozen.
    """

    def __init__(
        self,
        label: str,
        space: SearchSpace,
        optimizer: Optimizer,
        vectorised: bool,
        merged: Merged | None = None,
        removal: Removal = UNITS,
    ) -> None:
        check_space(space)
        check_optimizer(label, optimizer)
        if merged is None:
            check_parameters(space, optimizer)
        self.label, self.space, self.optimizer, self.merged = label, space, optimizer, merged
        self.removal = removal
        self.holder = optimizer if merged is None else merged.holder
        self.live = LiveSpace(space)
        self.closure: Callable[[], Any] | None = None
        nothing = np.zeros(space.num_units, dtype=bool)
        self.leaving: BoolArray = nothing
        self.zero: BoolArray = nothing
        self._kind: type[FastUnits | PlainUnits] = FastUnits if vectorised else PlainUnits
        self.gates = self._gates_of(removal)
        self.engine: Units = self._with_gates(self._kind(space, self.holder), ~nothing)
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

    @property
    def gated(self) -> BoolArray | None:
        """The units that nothing but a gate makes, [num_units]; None if there are none."""
        return self.gates.alone if self.gates is not None and self.gates.alone.any() else None

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
        self.engine = LiveUnits(self._with_gates(inner, here), here)
        self._look_up_anew()

    def state(self) -> dict[str, Any]:
        """What is left of terms that gates multiply, if there are any; all else is in the model's parameters."""
        return {} if self.gates is None else {"gates": self.gates.values.clone()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        if self.gates is not None:
            self.gates.load(state["gates"])

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ValueError` or `KeyError` unless there is one number from 0 to 1 for each gate."""
        if self.gates is not None:
            values, number = state["gates"], len(self.gates.structures)
            if not isinstance(values, Tensor) or values.shape != (number,) or not bool(torch.isfinite(values).all()):
                raise ValueError(f"its gates are not {number} numbers, one per term")

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

    def _gates_of(self, removal: Removal) -> TrainedGates | None:
        can = removal.candidates(self.space)
        units = structure_units(self.space)
        gated = [n for n, unit in units.items() if can[unit] and self.space.structures[n].gated]
        gates = TrainedGates(self.space, gated, self.optimizer) if gated else None
        return gates if gates is not None and gates.structures else None

    def _with_gates(self, inner: Units, here: BoolArray) -> Units:
        """``inner``, the units that are ``here`` [num_units], and the gates of those."""
        if self.gates is None:
            return inner
        number = np.where(here, here.cumsum() - 1, -1)[self.gates.unit].tolist()
        return GatedUnits(inner, self.gates, number, self.gates.alone[here], lambda: self.closure is not None)

    def _look_up_anew(self) -> None:
        for name in ("subset", "_zeros"):
            self.__dict__.pop(name, None)
