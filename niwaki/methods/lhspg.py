"""LHSPG: half-space projected gradient on frozen weights with LoRA adapters (LoRAShear, arXiv 2310.18356).

It is not in the registry of methods, which holds those that any training can choose by name: it needs adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from niwaki.budget import Budget, check_met, provenance
from niwaki.core.counts import FloatArray
from niwaki.core.plan import Plan
from niwaki.core.segments import unit_parameters
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.measure import Measurement
from niwaki.errors import BudgetError, MethodError
from niwaki.methods.checks import check_mask, check_number
from niwaki.methods.fading import FADING, IMPORTANT, Fading
from niwaki.methods.iterates import Change, Iterates, Sums, Unit
from niwaki.methods.iterates_fast import FastIterates
from niwaki.methods.iterates_plain import PlainIterates
from niwaki.methods.lora import can_leave, driven_units, find_pairs, held, merged_space, positions
from niwaki.methods.mix import WEIGHTS, Criteria
from niwaki.methods.progress import Phase
from niwaki.methods.proximal import left_half_space
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.sensitivity import layer_losses, sensitivity
from niwaki.selection import select


class LHSPG(Fading):
    """LHSPG on any optimizer that trains LoRA pairs A, B beside frozen weights W; a layer computes W + s B A.

    The budget is that of the merged network. At step ``schedule.start`` the least salient 25, 50 and 75 % of the units
    of one group at a time are set to zero, and the share ``protect`` of the groups for which the loss grows most is
    protected: they lose nothing. Then, in each of ``schedule.periods`` periods of T steps:

    * all pairs are merged, W <- W + s B A and B <- 0, and the least salient units by the weighted ``criteria`` of W are
      chosen to leave, as many as bring the cost an equal share nearer to the budget;
    * after each step of the optimizer, with x the weights W of such a unit before the step and y those of W + s B A
      after it: W_g <- y - penalty x / ||x||, B_g <- 0, and W_g <- 0 if this has left the half-space of x,
      <W_g, x> < epsilon ||x||^2. The penalty is ||x|| / (T - t) on step t = 0 ... T - 1, so that what a unit holds goes
      to zero in equal steps, unless a number is given;
    * at the period's end what is left of these units is set to zero.

    Units that no pair computes stay. Zeros stay zero. Of all other units W stays, to the bit, between two merges, and A
    and B take the bare optimizer's step. What the optimizer remembers of B (momentum) outlives a merge.

    Differs from the paper: its penalty is not given as a formula there that could be confirmed, and knowledge is not
    recovered by re-weighted data mixtures; go on training after ``until`` instead.

    Args:
        space: the search space of the model with its adapters (``peft.get_peft_model``), enabled and not merged.
        optimizer: holds the A and B of all pairs. The weights beside them must be frozen.
        budget: what the merged network may cost after ``schedule.until`` steps; shares are of the merged dense network.
        schedule: when; see `Schedule`.
        loss: the loss, computed anew: the mean over some batches. Called 1 + 3 * groups times for the
            sensitivity, and once per period for criteria that need gradients, then of all weights of the units.
        protect: the share of the groups that is protected, from 0 to below 1.
        penalty: None, or the length that a unit loses in each step.
        epsilon: how readily units are set to zero before their period ends, from 0 to below 1. Where a step takes more
            than 1 - epsilon of a unit, it is zero at once.
        criteria: criteria and their weights, or functions, as in HESSO; here of the space of the merged network.
        seed: for criteria that draw.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met, or later: not with what is protected.
        MethodError: the model has no LoRA layers that fit, none of them is prunable, the optimizer does not train them,
            a number makes no sense, or later: the training diverged.

    Example, with peft::

        model = peft.get_peft_model(model, peft.LoraConfig(target_modules="all-linear"))
        space = niwaki.search_space(model, example_inputs)
        optimizer = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad)
        schedule = niwaki.Schedule(start=50, until=450)
        method = niwaki.LHSPG(space, optimizer, niwaki.Budget(params=0.8), schedule, loss=lambda: loss_of(model))
        ...  # the training loop
        small = niwaki.cut(model, method.plan()).merge_and_unload()
    """

    name, label = "lhspg", "LHSPG"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        loss: Callable[[], Any] | None = None,
        protect: float = 0.1,
        penalty: float | None = None,
        epsilon: float = 0.0,
        criteria: Criteria = WEIGHTS,
        seed: int = 0,
        vectorised: bool = True,
    ) -> None:
        check_number("protect", protect, 0, 1, "it is the share of the groups that lose nothing")
        check_number("epsilon", epsilon, 0, 1, "it is the share of a unit that must be left after a step")
        schedule.check_fade("LHSPG")
        if penalty is not None:
            check_number("penalty", penalty, 0, math.inf, "it is the length that a unit loses in each step")
        self.loss, self.protect, self.penalty, self.epsilon = loss, float(protect), penalty, float(epsilon)
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
        needs = [f"the criterion {criterion.name!r}" for criterion in self.mix.registered if criterion.needs_data]
        if loss is not None and not callable(loss):
            raise MethodError(f"loss={loss!r} is no function. Pass loss=lambda: loss_fn(model(x), y).")
        if loss is None and (protect or needs):
            raise MethodError(
                f"LHSPG measures {'how the loss grows when parts of a group are zero' if protect else needs[0]}, but "
                "knows no loss. Pass loss=lambda: loss_fn(model(x), y), or leave out what needs it: protect=0 and "
                "criteria={'magnitude': 1.0}."
            )
        self._timeline = Timeline.of(schedule, 1)
        self._protected: BoolArray | None = None  # [groups]
        self._taken = 1.0  # the share that a step takes of a unit
        self._mark()
        self.attach()

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

    @property
    def timeline(self) -> Timeline:
        """Known from the beginning."""
        return self._timeline

    @property
    def phase(self) -> Phase:
        """What happens on the next step."""
        if self.step >= self._timeline.borders[-1]:
            return "done"
        return "half-space" if self.step >= self._timeline.borders[0] else "waiting"

    def before_step(self, step: int) -> None:
        """Keep x of the units that leave in this period."""
        if self._iterates is not None:
            self._iterates.remember()

    def after_step(self, step: int) -> None:
        """One step of the algorithm; the optimizer has just taken its own, on A and B."""
        if step in self._timeline.borders:
            for pair in self.pairs:
                pair.merge()
        for fold, where in self._folds:
            fold(where)
        if step == self._timeline.borders[0] and self._protected is None:
            self._protect()
        self.follow(self._timeline)

    def wither(self, factor: float) -> None:
        """The half-space step of the units that leave; their W is y by now, and their B zero."""
        if self._iterates is not None:
            self._taken = 1 - factor
            self._iterates.apply(self._iterates.change(self))

    @property
    def reads(self) -> frozenset[str]:
        """What `of_sums` needs."""
        return frozenset({"square", "inner"})

    def of_unit(self, unit: Unit) -> Change:
        """The algorithm box, for one unit that leaves."""
        x, y, norm = unit.x, unit.y, unit.x.norm()
        if norm == 0:
            return Change(keep=norm.new_zeros(()), pull=norm.new_zeros(()))
        penalty = norm * self._taken if self.penalty is None else norm.new_tensor(self.penalty)
        trial = y - penalty * x / norm
        return Change(keep=(trial @ x >= self.epsilon * (x @ x)).to(norm), pull=penalty / norm)

    def of_sums(self, sums: Sums) -> Change:
        """The same for all of them."""
        alive = sums.square > 0
        taken = torch.full_like(sums.square, self._taken) if self.penalty is None else self.penalty / sums.square.sqrt()
        pull = torch.where(alive, taken, 0)
        ends = ~alive | left_half_space(sums.inner - pull * sums.square, sums.square, self.epsilon)
        return Change(keep=(~ends).to(pull), pull=pull)

    def gone(self) -> BoolArray:
        """Not in the middle of training: weights and adapters are merged when the network is cut."""
        raise MethodError(
            "LHSPG cannot shrink the model in place: weights and adapters are merged when it is cut. Use "
            "niwaki.cut(model, method.plan()) at the end."
        )

    def saliency(self, keep: BoolArray) -> FloatArray:
        """Of W, when all pairs have just been merged."""
        criteria, loss, measured = self.mix.registered, self.loss, None
        if criteria:
            measurement = Measurement(self.space, criteria, self.seed, 1, False)
            if any(criterion.needs_data for criterion in criteria):
                assert loss is not None
                measured = measurement.over([None], lambda model, batch: loss())
            else:
                measured = measurement.at_weights()
        return self.weighted(self.mix.with_functions(measured, self.space, self.remains.here, self._units.device), keep)

    def group_weight(self) -> None:
        """None matters more than another, once some are protected."""

    def _protect(self) -> None:
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
        kind = FastIterates if self._vectorised else PlainIterates
        self._iterates: Iterates | None = kind(self.space, self._still, leaving) if leaving.any() else None

    def plan(self) -> Plan:
        """The plan, for the model with its adapters, that removes the units marked so far; after ``schedule.until``
        steps the merged network meets the budget, and all units of the plan are zero.

        Raises:
            PlanError: no values of the model's attributes could follow the choice.
        """
        important = self._status == IMPORTANT
        keep = np.ones(self._whole.num_units, dtype=bool)
        keep[self._number] = important
        about = provenance(self.space, important, self.budget, step=self.step, method=self.name, **self._about())
        return self._whole.plan(keep, about)

    def numbers(self) -> dict[str, Any]:
        """What is protected, penalty and epsilon."""
        return {"protect": self.protect, "penalty": self.penalty, "epsilon": self.epsilon}

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
