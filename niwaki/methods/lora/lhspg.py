"""LHSPG: half-space projected gradient on frozen weights with LoRA adapters (LoRAShear, arXiv 2310.18356).

It is not in the registry of methods, which holds those that any training can choose by name: it needs adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.measure import Measurement
from niwaki.errors import MethodError
from niwaki.methods.checks import check_number
from niwaki.methods.lora.adapted import Adapted
from niwaki.methods.proximal import left_half_space
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.scoring import WEIGHTS, Criteria
from niwaki.methods.status import Phase
from niwaki.per_unit.protocol import IterateSums, UnitIterates, UnitUpdate
from niwaki.selection.budget import Budget


class LHSPG(Adapted):
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

    After ``until`` go on training, on a mixture of the data that follows what was lost: `recovery_shares`.

    Differs from the paper: its penalty is not given as a formula there that could be confirmed.

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
        Schedule.check(schedule)
        schedule.check_fade("LHSPG")
        if penalty is not None:
            check_number("penalty", penalty, 0, math.inf, "it is the length that a unit loses in each step")
        self.loss, self.protect, self.penalty, self.epsilon = loss, float(protect), penalty, float(epsilon)
        super().__init__(space, optimizer, budget, schedule, criteria, seed, vectorised)
        needs = [f"the criterion {criterion.name!r}" for criterion in self.mix.registered if criterion.needs_data]
        if loss is not None and not callable(loss):
            raise MethodError(f"loss={loss!r} is not a function. Pass loss=lambda: loss_fn(model(x), y).")
        if loss is None and (protect or needs):
            raise MethodError(
                f"LHSPG measures {'how the loss grows when parts of a group are zero' if protect else needs[0]}, but "
                "knows no loss. Pass loss=lambda: loss_fn(model(x), y), or leave out what needs it: protect=0 and "
                "criteria={'magnitude': 1.0}."
            )
        self._timeline = Timeline.of(schedule, 1)
        self._taken = 1.0  # the share that a step takes of a unit
        self.attach()

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
        self.fold()
        if step == self._timeline.borders[0] and self._protected is None:
            self.protect_groups()
        self.follow(self._timeline)

    def fade_step(self, factor: float) -> None:
        """The half-space step of the units that leave; their W is y by now, and their B zero."""
        if self._iterates is not None:
            self._taken = 1 - factor
            self._iterates.apply(self._iterates.change(self))

    @property
    def reads(self) -> frozenset[str]:
        """What `of_sums` needs."""
        return frozenset({"square", "inner"})

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box, for one unit that leaves."""
        x, y, norm = unit.x, unit.y, unit.x.norm()
        if norm == 0:
            return UnitUpdate(keep=norm.new_zeros(()), penalty_step=norm.new_zeros(()))
        penalty = norm * self._taken if self.penalty is None else norm.new_tensor(self.penalty)
        trial = y - penalty * x / norm
        return UnitUpdate(keep=(trial @ x >= self.epsilon * (x @ x)).to(norm), penalty_step=penalty / norm)

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all of them."""
        alive = sums.square > 0
        taken = torch.full_like(sums.square, self._taken) if self.penalty is None else self.penalty / sums.square.sqrt()
        pull = torch.where(alive, taken, 0)
        ends = ~alive | left_half_space(sums.inner - pull * sums.square, sums.square, self.epsilon)
        return UnitUpdate(keep=(~ends).to(pull), penalty_step=pull)

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

    def hyperparameters(self) -> dict[str, Any]:
        """What is protected, penalty and epsilon."""
        return {"protect": self.protect, "penalty": self.penalty, "epsilon": self.epsilon}
