"""LHSPG: half-space projected gradient on frozen weights with LoRA adapters (LoRAShear, arXiv 2310.18356).

It is not in the registry of methods, which holds those that any training can choose by name: it needs adapters.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import SGD, Optimizer

from niwaki.core.space import SearchSpace, check_space
from niwaki.criteria.normalise import Compare
from niwaki.methods.checks import check_number
from niwaki.methods.lora.merged_scores import MergedScores
from niwaki.methods.lora.merging import Merging, check_pairs
from niwaki.methods.lora.pairs import find_pairs, merged_space
from niwaki.methods.method import Method
from niwaki.methods.parts import Target
from niwaki.methods.portions import Portions
from niwaki.methods.proximal import left_half_space
from niwaki.methods.rule_update import RuleUpdate
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.scoring import WEIGHTS, Criteria
from niwaki.methods.trained_units import Merged, TrainedUnits
from niwaki.per_unit.index import unit_parameters
from niwaki.per_unit.protocol import IterateSums, UnitIterates, UnitUpdate, UpdateRule
from niwaki.selection.budget import Budget, check_budget


@dataclass(frozen=True, slots=True)
class OfMerged(UpdateRule):
    """The half-space step of a unit whose weights before and after the step are those of the merged network.

    ``taken``: the share of a unit that goes in this step, unless ``penalty`` is a length.
    """

    penalty: float | None
    epsilon: float
    taken: float

    @property
    def reads(self) -> frozenset[str]:
        """What `of_sums` needs."""
        return frozenset({"square", "inner"})

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box, for one unit that leaves."""
        x, y, norm = unit.x, unit.y, unit.x.norm()
        if norm == 0:
            return UnitUpdate(keep=norm.new_zeros(()), penalty_step=norm.new_zeros(()))
        penalty = norm * self.taken if self.penalty is None else norm.new_tensor(self.penalty)
        trial = y - penalty * x / norm
        return UnitUpdate(keep=(trial @ x >= self.epsilon * (x @ x)).to(norm), penalty_step=penalty / norm)

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all of them."""
        alive = sums.square > 0
        taken = torch.full_like(sums.square, self.taken) if self.penalty is None else self.penalty / sums.square.sqrt()
        pull = torch.where(alive, taken, 0)
        ends = ~alive | left_half_space(sums.inner - pull * sums.square, sums.square, self.epsilon)
        return UnitUpdate(keep=(~ends).to(pull), penalty_step=pull)


class LHSPG(Method):
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
            Its latency is known if the space is `niwaki.timed`.
        schedule: when; see `Schedule`.
        loss: the loss, computed anew: the mean over some batches. Called 1 + 3 * groups times for the
            sensitivity, and once per period for criteria that need gradients, then of all weights of the units.
        protect: the share of the groups that is protected, from 0 to below 1.
        penalty: None, or the length that a unit loses in each step.
        epsilon: how readily units are set to zero before their period ends, from 0 to below 1. Where a step takes more
            than 1 - epsilon of a unit, it is zero at once.
        criteria: criteria and their weights, or functions, as in HESSO; here of the space of the merged network.
        compare: with which others each unit is compared, as in HESSO.
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
        compare: Compare = "group",
        seed: int = 0,
        vectorised: bool = True,
    ) -> None:
        check_number("protect", protect, 0, 1, "it is the share of the groups that lose nothing")
        check_number("epsilon", epsilon, 0, 1, "it is the share of a unit that must be left after a step")
        Schedule.check(schedule, self.label)
        schedule.check_fade(self.label)
        if penalty is not None:
            check_number("penalty", penalty, 0, math.inf, "it is the length that a unit loses in each step")
        check_space(space)
        pairs = find_pairs(space)
        merged, number = merged_space(space, pairs)
        check_pairs(self.label, merged, pairs, optimizer)
        still = SGD(list(unit_parameters(merged).values()), lr=1.0)  # never steps: x and y are what they are
        units = TrainedUnits(self.label, merged, optimizer, vectorised, Merged(still, space, number))
        check_budget(budget, space=merged, merged=True)
        target, line = Target.of(merged, budget), Timeline.of(schedule, 1)
        scores = MergedScores(units, target, line, criteria, seed, loss, float(protect), compare)
        length, half = penalty, float(epsilon)
        step = RuleUpdate(
            units,
            at=lambda step, left: OfMerged(length, half, 1 - (left or 0.0)),
            phase=lambda step: "half-space",
            settings={"penalty": penalty, "epsilon": half},
        )
        update = Merging(units, pairs, line, step)
        portions = Portions(units, target, schedule, scores)
        super().__init__(
            units,
            portions,
            update,
            cannot_shrink="weights and adapters are merged when it is cut. Use niwaki.cut(model, method.plan()) at the "
            "end.",
        )
