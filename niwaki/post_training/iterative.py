"""Choose in rounds: remove a little, score the network as it then is, and remove a little more.

What a unit is worth depends on which others are there. Scores of the dense network say nothing of the second of two
units that do the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from torch import nn

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
from niwaki.repair.compensate import compensate
from niwaki.selection import costs
from niwaki.selection.budget import Budget, check_budget
from niwaki.surgery.zero import zeroed

Repair = Literal["compensate", "norms", "none"]
REPAIRS: tuple[Repair, ...] = ("compensate", "norms", "none")
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
    readers: bool = False,
    remove: Literal["units", "structures", "both"] = "units",
    between: Repair = "norms",
    seed: int = 0,
    example_inputs: Any = None,
    told: Told | None = None,
) -> Plan:
    """The plan that `niwaki.choose` would find if it were asked for a little at a time.

    The limits of round r of R are those of the dense network less r / R of what is to be saved. In each round the units
    chosen so far are at zero in a copy of the network, which is scored again; there is no further analysis. Units that
    were removed are never taken back.

    Args:
        space: the search space.
        criterion: as for `niwaki.score`.
        budget: the limits. Measured ones (``latency``, ``activations``) hold for the last round.
        batches: for criteria that need data; all are held.
        loss_fn: as for `niwaki.score`.
        rounds: how many; 1 or more. Each costs what `niwaki.score` does, and after the first what ``between`` does: a
            forward pass for ``norms``, three for ``compensate``.
        compare: as for `niwaki.score`.
        readers: as for `niwaki.score`.
        remove: as for `niwaki.choose`.
        between: how the network is repaired before it is scored again, if there are ``batches``: ``norms`` re-estimates
            the statistics of BatchNorms, without which later layers read nonsense after some rounds; ``compensate``
            gives it the weights that it would have in the end; ``none``.
        seed: for criteria with random numbers.
        example_inputs: as for `niwaki.choose`.
        told: is called after each round, with its number and its plan.

    Raises:
        MethodError: ``between`` is unknown, ``rounds`` is not a whole number above 0; and whatever
            `niwaki.score` raises.
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
    if between not in REPAIRS:
        raise MethodError(f"between={between!r} is none of {', '.join(map(repr, REPAIRS))}.")
    limits = budget.absolute(space)
    if rounds > 1 and not limits:
        raise BudgetError(
            f"A limit on {', '.join(budget.limits)} is met by measuring cut networks, which says nothing of the steps "
            "on the way. Set a limit in macs, params or memory as well, or rounds=1."
        )
    held = None if batches is None else list(batches)
    everything = np.ones(space.num_units)
    if limits:
        choose(space, Scores(everything, "any"), _within(budget, limits), remove=remove)  # raises if nothing is within
    dense = costs(space.cost_model, np.ones(space.num_units, dtype=bool), limits)
    plan: Plan | None = None
    for number in range(1, rounds + 1):
        present = _as_it_is(space, plan, held, loss_fn, between)
        scores = score(present, criterion, held, loss_fn, compare=compare, seed=seed, readers=readers)
        share = number / rounds
        amounts = {m: max(2, int(dense[m] - (dense[m] - limit) * share)) for m, limit in limits.items()}
        asked = budget if number == rounds else _within(budget, amounts)
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


def _as_it_is(
    space: SearchSpace, plan: Plan | None, batches: list[Any] | None, loss_fn: Loss | None, repair: Repair
) -> SearchSpace:
    """``space`` with a copy of its network in which the units are zero that ``plan`` removes, repaired with the
    batches, if there are any."""
    if plan is None:
        return space
    model = space.model
    if not batches or loss_fn is None:
        return replace(space, model=zeroed(model, plan))

    def forward(network: nn.Module, batch: Any) -> None:
        loss_of(loss_fn, network, batch)

    if repair == "compensate":
        model = compensate(space, plan, batches, forward=forward).model
    model = zeroed(model, plan)
    if repair == "norms":
        reestimate_norms(model, batches, forward)
    return replace(space, model=model)
