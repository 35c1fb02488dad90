"""Experts that are replaced by the mean of what they make of their tokens (MoNE, arXiv 2507.00390)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.edits.make_constant import MakeConstant
from niwaki.core.names import named_modules
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_number
from niwaki.core.space import SearchSpace, check_space
from niwaki.core.structures import Structure
from niwaki.criteria.losses import Loss, loss_of
from niwaki.criteria.measure import borrowed
from niwaki.criteria.routed import experts_of
from niwaki.criteria.score import Scores
from niwaki.errors import BudgetError, MethodError, PlanError
from niwaki.implants.hap import saliency_of
from niwaki.trace.eager import eagerly


def constant_experts(
    space: SearchSpace, scores: Scores, batches: Iterable[Any], loss_fn: Loss, experts: float = 0.5
) -> Plan:
    """The plan in which the fraction ``experts`` of each router's experts, of the lowest scores, return constants.

    c_j = mean of f_j(x) over the tokens x that the router sends to expert j; the router is as it was, so that such a
    token gets g_j(x) c_j where it got g_j(x) f_j(x), and no other expert gets more tokens than it had (as happens where
    experts are removed: ``niwaki.choose(..., remove="structures")``). An expert without tokens returns zeros. At least
    one expert of each router stays.

    What differs from the paper: it chooses by how seldom an expert is used and how little its results vary; here by any
    ``scores`` of experts, such as ``reap``.

    Args:
        space: made with ``erase=True``, of a model whose experts are modules of their own.
        scores: of the structures, such as ``niwaki.score(space, "reap", batches, loss_fn)``.
        batches: as for `niwaki.score`.
        loss_fn: as for `niwaki.score`; the loss itself is not looked at.
        experts: the fraction of each router's, from 0 to below 1; rounded down.

    Raises:
        BudgetError: the fraction is out of range, or the scores are for another space.
        MethodError: the space has no experts, or one of them returns something else than one tensor, or a mean that is
            not finite.
        PlanError: the experts are no modules of their own.

    >>> import niwaki, torch
    >>> from torch import nn
    >>> class Mixture(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gate, self.experts = nn.Linear(4, 3), nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
    ...     def forward(self, x):
    ...         weight, chosen = self.gate(x).softmax(-1).max(-1)
    ...         out = torch.zeros_like(x)
    ...         for number, expert in enumerate(self.experts):
    ...             row = torch.where(chosen == number)[0]
    ...             out = out.index_add(0, row, expert(x[row]) * weight[row, None])
    ...         return out
    >>> model = nn.Sequential(nn.Linear(4, 4), Mixture(), nn.Linear(4, 2))
    >>> space = niwaki.search_space(model, torch.randn(5, 4), erase=True)
    >>> def loss_fn(model, x):
    ...     return model(x).square().mean()
    >>> batches = [torch.randn(20, 4)]
    >>> plan = constant_experts(space, niwaki.score(space, "reap", batches, loss_fn), batches, loss_fn, 0.7)
    >>> [type(expert).__name__ for expert in niwaki.cut(model, plan)[1].experts].count("Constant")
    2
    """
    check_space(space)
    if not is_number(experts) or not 0 <= experts < 1:
        raise BudgetError(f"experts={experts!r} must be a fraction from 0 to below 1.")
    values = saliency_of(space, scores)
    if not experts_of(space):
        raise MethodError(
            "There are no experts that a router chooses in this space: build it with niwaki.search_space(..., "
            "erase=True)."
        )
    routers: dict[str, list[tuple[float, str]]] = {}
    modules = dict(named_modules(space.model))
    for group in experts_of(space):
        assert group.structure is not None
        structure = space.structures[group.structure]
        own = routers.setdefault(structure.router or "", [])
        own.append((float(values[group.first]), _module_of(structure, modules)))
    every = [[name for _, name in sorted(own)] for own in routers.values()]
    means = _means([{name: modules[name] for name in own} for own in every], space.model, batches, loss_fn)
    # 0.29 of 100 are 29, although the float of that number is a little less.
    chosen = [name for own in every for name in own[: math.floor(Fraction(repr(float(experts))) * len(own))]]
    broken = next((name for name in chosen if not np.isfinite(means[name]).all()), None)
    if broken is not None:
        raise MethodError(
            f"The mean of what the expert {broken!r} returns is not finite, so that it cannot stand for it. Look for "
            "NaN or infinite values in the batches, or for diverged weights."
        )
    everything = np.ones(space.num_units, dtype=bool)
    plan = space.plan(everything, {"criterion": scores.criterion, "constant experts": experts})
    plan = plan.with_edits([MakeConstant(name, means[name]) for name in chosen])
    dense, cost = space.cost(), space.cost(plan)
    told = {
        key: {"params": one.params, "macs": one.macs, "memory": one.memory}
        for key, one in (("dense", dense), ("kept", cost))
    }
    return replace(plan, provenance={**plan.provenance, **told})


def _module_of(structure: Structure, modules: dict[str, nn.Module]) -> str:
    """The module that an expert is."""
    if structure.name not in modules or not structure.parameters:
        raise PlanError(
            f"The expert {structure.name!r} is a part of tensors that hold all experts, and no module of its own, so "
            "that nothing can take its place there. Remove such experts (niwaki.choose(..., remove='structures')), or "
            "write the mixture with a list of modules."
        )
    return structure.name


def _means(
    routers: Sequence[Mapping[str, nn.Module]], model: nn.Module, batches: Iterable[Any], loss_fn: Loss
) -> dict[str, tuple[float, ...]]:
    """The mean results of the experts of ``routers`` over all rows that they are given."""
    sums: dict[str, Tensor] = {}
    rows = {name: 0 for own in routers for name in own}

    def hook(name: str) -> Any:
        def add(module: nn.Module, args: Any, result: Any) -> None:
            if not isinstance(result, Tensor):
                raise MethodError(
                    f"The expert {name!r} returns a {type(result).__qualname__}, not a tensor, so that it has no mean."
                )
            flat = result.detach().double().reshape(-1, result.shape[-1])
            sums[name] = sums.get(name, torch.zeros_like(flat[0:0].sum(0))) + flat.sum(0)
            rows[name] += len(flat)

        return add

    with borrowed(model, []), eagerly(), torch.no_grad(), ExitStack() as hooks:
        for name, module in (item for own in routers for item in own.items()):
            hooks.callback(module.register_forward_hook(hook(name)).remove)
        for batch in batches:
            loss_of(loss_fn, model, batch)
    for own in routers:
        some = next((sums[name] for name in own if name in sums), None)
        if some is None:
            raise MethodError(
                f"No batch sent a token to any of the experts beside {next(iter(own))!r}, so that they have no means. "
                "Pass batches on which loss_fn runs the whole model."
            )
        sums |= {name: torch.zeros_like(some) for name in own if name not in sums}
    return {name: tuple(float(f"{x:.9g}") for x in (sums[name] / max(1, rows[name])).tolist()) for name in rows}
