"""Hessian-Aware Pruning (arXiv 2101.08940) in one call: scores, one threshold, implants, and how to fine-tune."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from niwaki import implants
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_whole
from niwaki.core.space import SearchSpace
from niwaki.criteria.losses import Loss
from niwaki.criteria.products import SecondDerivatives
from niwaki.criteria.score import score
from niwaki.errors import BudgetError, MethodError
from niwaki.implants.hap import check_fractions
from niwaki.implants.layers import ImplantLayers
from niwaki.implants.limits import limits_of
from niwaki.post_training.iterative import Repair
from niwaki.post_training.own_choice import OwnChoice
from niwaki.selection.budget import Budget


@dataclass(frozen=True, slots=True)
class HAP(OwnChoice):
    """Hessian-Aware Pruning (arXiv 2101.08940), as a ``method`` of `niwaki.prune`.

    The network is scored once by ``relative_hessian_trace``, and `niwaki.implants.hap` chooses: the fraction
    ``removed`` of all units of the lowest scores leaves, every group keeps at least the fraction ``least`` and one
    unit, and of what would leave the fraction ``implants`` that is most sensitive becomes implants. Instead of
    ``removed``, `niwaki.prune` can have a budget; then the smallest such fraction leaves that meets it. The statistics
    of BatchNorms are re-estimated afterwards, and `fine_tuning` is how the paper goes on.

    Args:
        removed: the fraction of all units, from 0 to 1; None where a budget says how much is to go.
        implants: the fraction of those that would leave, from 0 to 1.
        least: the fraction of each group that stays, from 0 to 1.
        rank: with it, linear layers have implants too, see `niwaki.implants.choose`.
        probes: products with the Hessian for each batch.
        second_derivatives: how these are made.

    Raises:
        BudgetError: a fraction is out of range.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 20, 3, padding=1), torch.nn.Tanh(), torch.nn.Flatten(),
        ...     torch.nn.Linear(320, 3))
        >>> data = [(torch.randn(16, 1, 4, 4), torch.randint(0, 3, (16,)))]
        >>> pruned = niwaki.prune(
        ...     net, data[0][0], batches=data, loss_fn=torch.nn.CrossEntropyLoss(), method=niwaki.HAP(removed=0.5)
        ... )
        >>> pruned.model[0]
        Implanted(
          (whole): Conv2d(1, 10, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1))
          (slim): Conv2d(1, 1, kernel_size=(1, 1), stride=(1, 1))
        )
        >>> optimizer, schedule = niwaki.HAP.fine_tuning(pruned.model, steps=200)
    """

    name: ClassVar[str] = "hap"
    needs: ClassVar[str] = "it takes second derivatives of the loss, on data"
    repair: ClassVar[Repair] = "norms"

    removed: float | None = None
    implants: float = 0.1
    least: float = 0.05
    rank: int | None = None
    probes: int = 30
    second_derivatives: SecondDerivatives | None = None

    def __post_init__(self) -> None:
        removed = {} if self.removed is None else {"removed": self.removed}
        check_fractions({**removed, "implants": self.implants, "least": self.least})

    def plan(self, space: SearchSpace, budget: Budget | None, batches: Sequence[Any], loss_fn: Loss, seed: int) -> Plan:
        """The plan of `niwaki.implants.hap`.

        Raises:
            BudgetError: there is neither a budget nor a fraction to remove, or both; and whatever that raises.
            MethodError: the loss has no second derivative, or is not finite.
        """
        if (budget is None) == (self.removed is None):
            have = "neither a budget nor" if budget is None else "a budget and"
            raise BudgetError(
                f"Hessian-Aware Pruning has {have} a fraction of the units to remove. Give one of both: "
                "niwaki.Budget(macs=0.5), or method=niwaki.HAP(removed=0.5)."
            )
        if budget is not None:  # before the scoring, which takes long
            limits_of(ImplantLayers.of(space, self.rank), budget)
        scores = score(
            *(space, "relative_hessian_trace", batches, loss_fn),
            probes=self.probes,
            seed=seed,
            second_derivatives=self.second_derivatives,
        )
        how_much = self.removed if budget is None else budget
        assert how_much is not None
        return implants.hap(space, scores, how_much, implants=self.implants, least=self.least, rank=self.rank)

    @staticmethod
    def fine_tuning(model: nn.Module, steps: int) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
        """The optimizer and the schedule of the paper's fine-tuning, for ``steps`` steps of both.

        SGD with momentum 0.9, weight decay 4e-4 and learning rate 0.02, a tenth of it after a half of the steps, and a
        hundredth after three quarters. Re-estimate the statistics of norms at the end, with `niwaki.reestimate_norms`.

        Raises:
            MethodError: ``steps`` is not a whole number above 0.
        """
        if not is_whole(steps) or steps < 1:
            raise MethodError(f"steps={steps!r} must be a whole number, 1 or more: how many steps are taken.")
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=4e-4)
        return optimizer, torch.optim.lr_scheduler.MultiStepLR(optimizer, [steps // 2, steps * 3 // 4], 0.1)
