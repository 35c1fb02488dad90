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

from niwaki.compiled import eagerly
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.surgery.cut import duplicate
from niwaki.surgery.plans import check_plan
from niwaki.surgery.readers import Reader, channels, readers_of, removed_from
from niwaki.trace.preserve import preserved
from niwaki.trace.tracer import example_calls

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


@eagerly()
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
    check_plan(plan)
    plan.check_fits(space.model)
    model = duplicate(space.model)
    _silence(space, plan, model)
    readers = readers_of(space, plan, model)
    seen: dict[str, list[Tensor]] = {name: [] for name in readers}
    training = [module.training for module in model.modules()]
    with preserved(model), torch.no_grad():
        model.eval()
        handles = [
            layer.register_forward_pre_hook(_noter(seen[name], channels(layer), removed))
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
            removed = removed_from(plan, place.tensor, place.dim, parameters)
            if place.produces and place.parameter and removed is not None:
                parameters[place.tensor].index_fill_(place.dim, removed, 0)


def _noter(seen: list[Tensor], dim: int, removed: Tensor) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def note(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].index_select(dim, removed).movedim(dim, -1).reshape(-1, len(removed)))

    return note


def _fold(layer: Reader, removed: Tensor, seen: list[Tensor]) -> str | None:
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
