"""Constants that removed units still send out, moved into the biases of the layers that read them.

A unit whose producers are zero is not silent where something on the way maps zero to another value (sigmoid, exp, an
added number): the layer that reads it adds the same constant everywhere. The cut drops that constant, lawfully, since
in the law's reference the reading weights are zero as well; the bias of the reading layer can keep it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.surgery.cut import duplicate
from niwaki.trace.preserve import preserved
from niwaki.trace.tracer import example_calls

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d
_CLOSE = 1e-5  # relative; what a float32 convolution of a constant may differ by from place to place


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """``model``: a dense copy, ready for `niwaki.cut`. ``folded``: the layers whose bias took a constant up. ``left``:
    the layers that lose one, each with the reason."""

    model: nn.Module
    folded: tuple[str, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"Constants of removed units went into the biases of {len(self.folded)} layers."]
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.left.items())])


def fold_constants(space: SearchSpace, plan: Plan, example_inputs: Any) -> Folded:
    """Keep what removed units would still send out once their producers are zero.

    Args:
        space: the search space of the model; the model is left as it was.
        plan: what is going to be cut.
        example_inputs: as for `niwaki.search_space`. The copy runs on them in eval mode, to see which layers read a
            constant from removed units.

    The cut of ``Folded.model`` computes what the original does with only the *producers* of the removed units at zero.
    That is exact unless a layer is in ``Folded.left``: because what it reads is not constant, because it has no bias,
    or because it pads with zeros, where the constant is missing at the border.

    Raises:
        PlanError: the plan is for another network.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2)).eval()
        >>> x = torch.randn(3, 4)
        >>> space = niwaki.search_space(net, x)
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> niwaki.fold_constants(space, plan, x).folded
        ('2',)
    """
    plan.check_fits(space.model)
    model = duplicate(space.model)
    _silence(space, plan, model)
    readers = _readers(space, plan, model)
    seen: dict[str, list[Tensor]] = {name: [] for name in readers}
    training = [module.training for module in model.modules()]
    with preserved(model), torch.no_grad():
        model.eval()
        handles = [
            layer.register_forward_pre_hook(_noter(seen[name], _channels(layer), removed))
            for name, (layer, removed) in readers.items()
        ]
        for args, kwargs in example_calls(example_inputs):
            model(*args, **kwargs)
        for handle in handles:
            handle.remove()
    for module, was in zip(model.modules(), training, strict=True):
        module.training = was
    folded, left = [], {}
    for name, (layer, removed) in readers.items():
        problem = _fold(layer, removed, seen[name])
        if problem is None:
            folded.append(name)
        elif problem:
            left[name] = problem
    return Folded(model, tuple(folded), left)


def _silence(space: SearchSpace, plan: Plan, model: nn.Module) -> None:
    """Zero what produces the removed units."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for place in space.places:
            removed = _removed(plan, place.tensor, place.dim, parameters)
            if place.produces and place.parameter and removed is not None:
                parameters[place.tensor].index_fill_(place.dim, removed, 0)


def _readers(space: SearchSpace, plan: Plan, model: nn.Module) -> dict[str, tuple[nn.Linear | _Convolution, Tensor]]:
    """The linear layers and ungrouped convolutions that read removed units, and which of their inputs these are."""
    reading = {(place.tensor, place.dim) for place in space.places if not place.produces}
    parameters = dict(model.named_parameters())
    names = {id(parameter): name for name, parameter in parameters.items()}
    found: dict[str, tuple[nn.Linear | _Convolution, Tensor]] = {}
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear) or (isinstance(layer, _Convolution) and layer.groups == 1):
            name = names.get(id(layer.weight), "")
            removed = _removed(plan, name, 1, parameters)
            if (name, 1) in reading and removed is not None:
                found[path] = layer, removed
    return found


def _removed(plan: Plan, tensor: str, dim: int, parameters: Mapping[str, nn.Parameter]) -> Tensor | None:
    kept = plan.tensors.get(tensor, {}).get(dim)
    if kept is None or tensor not in parameters:
        return None
    stays = torch.zeros(parameters[tensor].shape[dim], dtype=torch.bool, device=parameters[tensor].device)
    stays[list(kept)] = True
    return (~stays).nonzero().flatten()


def _channels(layer: nn.Linear | _Convolution) -> int:
    """The dimension of the input that the layer sums over, from the end."""
    return -1 if isinstance(layer, nn.Linear) else 1 - layer.weight.ndim


def _noter(seen: list[Tensor], dim: int, removed: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].index_select(dim, removed).movedim(dim, -1).reshape(-1, len(removed)))

    return note


def _fold(layer: nn.Linear | _Convolution, removed: Tensor, seen: list[Tensor]) -> str | None:
    """Move the constant into the bias; returns None, or why not (empty where there is no constant to lose)."""
    if not seen:
        return "no example input reached it"
    values = torch.cat(seen)
    if not bool(values.any()):
        return ""
    constant = values[0]
    if float((values - constant).abs().max()) > _CLOSE * float(values.abs().max()):
        return "what it reads from removed units is not constant"
    if layer.bias is None:
        return "it has no bias"
    if (
        not isinstance(layer, nn.Linear)
        and any(layer._reversed_padding_repeated_twice)
        and layer.padding_mode == "zeros"
    ):
        return "it pads with zeros, so the constant is missing at the border"
    weight = layer.weight.detach().index_select(1, removed)
    with torch.no_grad():
        layer.bias += weight.reshape(*weight.shape[:2], -1).sum(2) @ constant
    return None
