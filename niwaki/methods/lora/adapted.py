"""What LHSPG has to do with adapters: pairs beside frozen weights, the network they merge to, protected groups."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace, check_space
from niwaki.errors import BudgetError, MethodError
from niwaki.methods.checks import check_mask
from niwaki.methods.fading import FADING, IMPORTANT, GradualPruning
from niwaki.methods.lora.pairs import can_leave, driven_units, find_pairs, held, merged_space, positions
from niwaki.methods.schedule import Schedule
from niwaki.methods.scoring import Criteria
from niwaki.methods.sensitivity import layer_losses, sensitivity
from niwaki.per_unit.fast import FastPerUnit
from niwaki.per_unit.index import unit_parameters
from niwaki.per_unit.plain import PlainPerUnit
from niwaki.per_unit.protocol import PerUnit
from niwaki.selection import select
from niwaki.selection.budget import Budget, check_met


class Adapted(GradualPruning):
    """A method on the network that LoRA pairs and the frozen weights beside them merge to.

    ``pairs``: all adapters. ``space``: that of the merged network, in which protected groups lose nothing.
    """

    loss: Callable[[], Any] | None
    protect: float  # the share of the groups that is protected

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        criteria: Criteria,
        seed: int,
        vectorised: bool,
    ) -> None:
        check_space(space)
        self.pairs = find_pairs(space)
        merged, self._number = merged_space(space, self.pairs)
        self._merged = merged
        self._whole = space
        if not can_leave(merged).any():
            raise MethodError(
                f"None of the {len(self.pairs)} LoRA layers, first {self.pairs[0].names[0]!r}, computes a unit that "
                "can leave, so there is nothing to prune. Add adapters to layers whose outputs are prunable; "
                "print(space) lists the groups, and why others are pinned."
            )
        self._still = SGD(list(unit_parameters(merged).values()), lr=1.0)  # never steps: x and y are what they are
        super().__init__(merged, optimizer, budget, schedule, criteria, 1, seed, vectorised)
        self._protected: BoolArray | None = None  # [groups]
        self._mark()

    def check_parameters(self) -> None:
        """The pairs train, the weights beside them do not."""
        trained = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        for pair in self.pairs:
            weight, a, b = pair.names
            if pair.weight.requires_grad:
                raise MethodError(
                    f"The weight {weight!r} has an adapter and trains as well, but LHSPG changes it beside the "
                    "optimizer. Freeze it (requires_grad=False), as peft does."
                )
            for name, parameter in ((a, pair.a), (b, pair.b)):
                if not parameter.requires_grad or id(parameter) not in trained:
                    why = "is frozen" if not parameter.requires_grad else "is not among the optimizer's parameters"
                    raise MethodError(
                        f"{name!r} {why}, so the adapter of {weight!r} cannot train. Give the optimizer the A and B of "
                        "all LoRA layers of the model that the search space was built from."
                    )

    def holder(self) -> Optimizer:
        """One that never steps: the weights that units are made of are frozen."""
        return self._still

    def gone(self) -> BoolArray:
        """Not in the middle of training: weights and adapters are merged when the network is cut."""
        raise MethodError(
            "LHSPG cannot shrink the model in place: weights and adapters are merged when it is cut. Use "
            "niwaki.cut(model, method.plan()) at the end."
        )

    def fold(self) -> None:
        """Take what the pairs hold of units that leave, or have left, into the weights."""
        for fold, where in self._folds:
            fold(where)

    def protect_groups(self) -> None:
        """Hold the groups to which the loss is most sensitive."""
        may = can_leave(self.space)
        self._protected = np.zeros(len(self.space.groups), dtype=bool)
        number = round(self.protect * int(may.sum()))
        if not number:
            return
        assert self.loss is not None
        saliency = self.saliency(self._status == IMPORTANT)
        found = sensitivity(layer_losses(self.space, self._units, saliency, self.loss))
        order = np.argsort(np.where(may, -found, np.inf), kind="stable")
        self._protected[order[:number]] = True
        self._hold()
        least = select(self.space, np.ones(self.space.num_units), self._limits, steps=self.budget.steps)
        try:
            check_met(self.space, least, self._limits, self.budget.steps)
        except BudgetError as cause:
            names = ", ".join(self.space.groups[n].name for n in np.flatnonzero(self._protected))
            raise BudgetError(
                f"With the most sensitive groups protected ({names}) there is too little to remove. {cause} Nothing "
                "has been removed yet: protect fewer."
            ) from cause

    def _hold(self) -> None:
        assert self._protected is not None
        self.space = held(self._merged, np.flatnonzero(self._protected).tolist())

    def _mark(self) -> None:
        super()._mark()
        self._folds: list[tuple[Callable[[Tensor], None], Tensor]] = []
        for pair in self.pairs:
            weight = pair.names[0]
            for fold, dim in ((pair.fold_rows, pair.out), (pair.fold_columns, 1 - pair.out)):
                units = driven_units(self.space, weight, dim)
                where = positions(units, self._status != IMPORTANT, pair.weight)
                if where is not None:
                    self._folds.append((fold, where))
        leaving = self._status == FADING
        kind = FastPerUnit if self._vectorised else PlainPerUnit
        self._iterates: PerUnit | None = kind(self.space, self._still, leaving) if leaving.any() else None

    def planned(self, keep: BoolArray, about: dict[str, Any]) -> Plan:
        """For the model with its adapters, whose rank stays; costs are those of the merged network."""
        whole = np.ones(self._whole.num_units, dtype=bool)
        whole[self._number] = keep
        return self.plan_of_zeros(self._whole, whole, about)

    def state(self) -> dict[str, Any]:
        """Beside what each unit is: the groups that are protected, once they are known."""
        state = super().state()
        return state if self._protected is None else state | {"protected": torch.from_numpy(self._protected.copy())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`; W is in the model's parameters."""
        protected = state.get("protected")
        self._protected = None if protected is None else protected.cpu().numpy().copy()
        self.space = self._merged
        if self._protected is not None:
            self._hold()
        super().restore(state)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Perhaps one truth value per group."""
        super().check_state(state)
        if "protected" in state:
            check_mask("choice of protected groups", state["protected"], len(self._merged.groups))
