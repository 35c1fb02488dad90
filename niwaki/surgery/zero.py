"""The reference of the law: the same network with every entry of every removed unit at zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch

from niwaki.core.names import named_modules, named_parameters
from niwaki.core.plan import Plan
from niwaki.surgery.cut import duplicate
from niwaki.surgery.history import check_plan, inside, to_do


def zeroed(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """A copy of ``model`` in which every entry of every *parameter* that lies in a slice of a removed unit is zero.

    Producing and consuming slices alike; buffers and everything else are as they were. So are the directions of weight
    norms (`niwaki.core.edits.KeepDirection`), whose lengths are zero.
    """
    return zero_out(duplicate(model), plan)


def zero_(model: torch.nn.Module, plan: Plan) -> None:
    """Set the units that ``plan`` removes to zero in ``model``: what is left of it computes what `niwaki.cut` gives.

    For a look at the cut network in its old shape, and for copies of a model whose units a method has set to zero: an
    average of its weights (EMA) holds what these units once were. Its accuracy is that of the cut network from then on,
    and its averages go on with zeros.

    Args:
        model: a network that the plan fits, or a module that wraps one (``torch.optim.swa_utils.AveragedModel``,
            ``torch.compile``).
        plan: what stays, of `niwaki.choose` or of a method.

    Raises:
        PlanError: the plan is for another network, or no plan.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> niwaki.zero_(net, plan)
        >>> int((net[0].weight == 0).all(dim=1).sum())
        4
    """
    check_plan(plan)
    zero_out(inside(model, plan), plan)


def zero_out(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """As `zeroed`, the model itself; for copies that are the caller's own."""
    plan, _ = to_do(model, plan)
    with torch.no_grad():
        _fill(dict(named_parameters(model)), plan)
    _mask(model, plan)
    return model


@contextmanager
def masked(model: torch.nn.Module, plan: Plan) -> Iterator[None]:
    """Inside, ``model`` itself is what `zeroed` makes of a copy of it. Its parameters are lent other memory: what they
    hold is not written to, and graphs that were recorded before stay valid."""
    plan, _ = to_do(model, plan)
    lent = {name: (parameter, parameter.data) for name, parameter in named_parameters(model) if name in plan.changes}
    undoing: list[Callable[[], None]] = []
    try:
        for parameter, data in lent.values():
            parameter.data = data.clone()
        _fill({name: parameter.data for name, (parameter, _) in lent.items()}, plan)
        undoing = _mask(model, plan)
        yield
    finally:
        for undo in reversed(undoing):
            undo()
        for parameter, data in lent.values():
            parameter.data = data


def _fill(parameters: Mapping[str, torch.Tensor], plan: Plan) -> None:
    """Set what ``plan`` removes to zero."""
    for name, change in plan.changes.items():
        if name in parameters:
            change.zero_(parameters[name])


def _mask(model: torch.nn.Module, plan: Plan) -> list[Callable[[], None]]:
    """Let modules compute what they do in the cut network; the results undo that, the last one first."""
    modules = dict(named_modules(model))
    return [edit.mask(modules) for edit in plan.module_edits]
