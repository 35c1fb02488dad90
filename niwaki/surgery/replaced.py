"""Modules that are replaced while a network trains: the optimizer goes on with the parameters of the new ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.edits import NewParameter, ReplacingEdit
from niwaki.core.names import named_modules
from niwaki.core.plan import Plan
from niwaki.core.renaming import Renaming


def replaced_parameters(model: nn.Module, plan: Plan) -> dict[str, dict[str, nn.Parameter]]:
    """The parameters of the modules of ``model`` that ``plan`` replaces, by path and name."""
    modules = dict(named_modules(model))
    return {
        edit.module: {name: value for name, value in modules[edit.module]._parameters.items() if value is not None}
        for edit in plan.module_edits
        if isinstance(edit, ReplacingEdit)
    }


def carry_over(
    replaced: Mapping[str, Mapping[str, nn.Parameter]], model: nn.Module, plan: Plan, optimizer: Optimizer | None
) -> None:
    """Give the parameters of new modules in ``model`` the gradients of the ``replaced`` ones, put them in their groups
    of ``optimizer``, and give them their state, as far as they are some of their entries: other ones begin without."""
    modules, names = dict(named_modules(model)), Renaming.of(plan)
    for edit in plan.module_edits:
        path = names.after(edit.module) if isinstance(edit, ReplacingEdit) else None
        if path is None or not isinstance(edit, ReplacingEdit):
            continue
        for name, part in edit.parts().items():
            old, new = replaced[edit.module][part.old], modules[path].get_parameter(name)
            if part.selects and old.grad is not None:
                new.grad = part.of(old.grad.detach())
            if optimizer is not None:
                _put(optimizer, old, new, part)


def _put(optimizer: Optimizer, old: nn.Parameter, new: nn.Parameter, part: NewParameter) -> None:
    for group in optimizer.param_groups:
        if any(one is old for one in group["params"]):
            group["params"].append(new)
            if part.selects and old in optimizer.state:
                optimizer.state[new] = {key: _of_state(value, old, part) for key, value in optimizer.state[old].items()}


def _of_state(value: Any, old: nn.Parameter, part: NewParameter) -> Any:
    if not isinstance(value, Tensor):
        return value
    return part.of(value) if value.shape == old.shape else value.clone()
