"""Choose in rounds: remove a little, score the network as it then is, and remove a little more.

What a unit is worth depends on which others are there. Scores of the dense network say nothing of the second of two
units that do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.choosing import choose, chosen
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_whole
from niwaki.core.space import SearchSpace, check_space
from niwaki.criteria.losses import Loss, loss_of
from niwaki.criteria.mix import One
from niwaki.criteria.normalise import Compare
from niwaki.criteria.score import Scores, score
from niwaki.errors import BudgetError, MethodError
from niwaki.repair.batchnorm import reestimate_norms
from niwaki.selection import costs
from niwaki.selection.budget import Budget, check_budget
from niwaki.surgery.zero import masked

Told = Callable[[int, Plan], object]


def choose_iteratively(
    space: SearchSpace,
    criterion: One | Mapping[One, float],
    budget: Budget,
    batches: Iterable[Any] | None = None,
    loss_fn: Loss | None = None,
    *,
    rounds: int = 20,
    compare: Compare | None = None,
    remove: Literal["units", "structures", "both"] = "units",
    norms: bool = True,
    seed: int = 0,
    example_inputs: Any = None,
    told: Told | None = None,
) -> Plan:
    """The plan that `niwaki.choose` would find if it were asked for a little at a time.

    The limits of round r of R are those of the dense network less r / R of what is to be saved. In each round the units
    chosen so far are at zero in the network itself, which is scored again; there is no further analysis. Units that
    were removed are never taken back.

    Args:
        space: the search space.
        criterion: as for `niwaki.score`.
        budget: the limits. Measured ones (``latency``, ``activations``) hold for the last round.
        batches: for criteria that need data; all are held.
        loss_fn: as for `niwaki.score`.
        rounds: how many; 1 or more. Each costs what `niwaki.score` does, and ``norms`` one forward pass.
        compare: as for `niwaki.score`.
        remove: as for `niwaki.choose`.
        norms: score the network with BatchNorms that have the statistics of ``batches``, as it would be repaired: with
            those of the dense network, later layers read nonsense after some rounds.
        seed: for criteria with random numbers.
        example_inputs: as for `niwaki.choose`.
        told: is called after each round, with its number and its plan.

    The model is restored.

    Raises:
        MethodError: ``rounds`` is not a whole number above 0; and whatever `niwaki.score` raises.
        BudgetError: the budget cannot be met, or has limits that can only be measured, and more than one round is
            asked for; and whatever `niwaki.choose` raises.

    >>> import niwaki, torch
    >>> from niwaki.post_training.iterative import choose_iteratively
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> plan = choose_iteratively(space, "magnitude", niwaki.Budget(macs=0.5), rounds=3)
    >>> space.cost(plan).macs
    30
    """
    check_space(space)
    check_budget(budget, training=False)
    if not is_whole(rounds) or rounds < 1:
        raise MethodError(f"rounds={rounds!r} must be a whole number, 1 or more: how often the network is scored.")
    limits = budget.absolute(space)
    if rounds > 1 and not limits:
        raise BudgetError(
            f"A limit on {', '.join(budget.limits)} is met by measuring cut networks, which says nothing of the steps "
            "on the way. Set a limit in macs, params or memory as well, or rounds=1."
        )
    held = None if batches is None else list(batches)
    everything = np.ones(space.num_units)
    choose(space, Scores(everything, "any"), _within(budget, limits), remove=remove)  # raises if nothing is within it
    dense = costs(space.cost_model, np.ones(space.num_units, dtype=bool), limits)
    plan: Plan | None = None
    for number in range(1, rounds + 1):
        with _as_it_is(space.model, plan, held if norms else None, loss_fn):
            scores = score(space, criterion, held, loss_fn, compare=compare, seed=seed)
        share = number / rounds
        between = {m: max(2, int(dense[m] - (dense[m] - limit) * share)) for m, limit in limits.items()}
        asked = budget if number == rounds else _within(budget, between)
        gone = None if plan is None else ~space.keep_of(plan)
        plan = chosen(space, scores, asked, gone, None, example_inputs if number == rounds else None, remove)
        if told is not None:
            told(number, plan)
    assert plan is not None
    return plan


def _within(budget: Budget, limits: Mapping[str, float]) -> Budget:
    """The ``budget`` with amounts for limits, and none that are measured."""
    amounts: dict[str, Any] = {measure: int(limit) for measure, limit in limits.items()}
    return Budget(**amounts, round_to=budget.round_to, min_units=budget.min_units)


@contextmanager
def _as_it_is(model: nn.Module, plan: Plan | None, batches: list[Any] | None, loss_fn: Loss | None) -> Iterator[None]:
    """Inside, ``model`` has the units at zero that ``plan`` removes, and norms with the statistics of the batches, if
    there are any."""
    if plan is None:
        yield
        return
    statistics = [buffer for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()]
    before = [buffer.clone() for buffer in statistics]
    with masked(model, plan):
        try:
            if batches and loss_fn is not None and statistics:
                reestimate_norms(model, batches, lambda network, batch: loss_of(loss_fn, network, batch))
            yield
        finally:
            with torch.no_grad():
                for buffer, value in zip(statistics, before, strict=True):
                    buffer.copy_(value)
