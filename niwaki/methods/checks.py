"""What methods check: of their arguments, of the optimizer, and of their saved state."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.names import named_parameters
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.per_unit.index import unit_parameters
from niwaki.selection.budget import is_number, is_whole


def check_number(name: str, value: object, low: float, high: float, why: str) -> None:
    """Raise `MethodError` unless ``value`` is a number from ``low`` to below ``high``."""
    if not is_number(value) or not math.isfinite(value) or not low <= value < high:
        span = f"from {low:g} to below {high:g}" if math.isfinite(high) else f"{low:g} or more"
        raise MethodError(f"{name}={value!r} must be a finite number, {span}: {why}.")


def check_steps(name: str, value: object, why: str) -> None:
    """Raise `MethodError` unless ``value`` is a positive whole number."""
    if not is_whole(value) or value < 1:
        raise MethodError(f"{name}={value!r} must be a whole number of steps, 1 or more: {why}.")


def check_mask(name: str, mask: object, units: int) -> None:
    """Raise `ValueError` unless ``mask`` is one truth value per unit."""
    if not isinstance(mask, Tensor) or mask.shape != (units,) or mask.dtype != torch.bool:
        raise ValueError(f"its {name} is not {units} truth values, one per unit")


def diverged(what: str, step: int) -> MethodError:
    """The error when units cannot be compared: ``what`` is not finite."""
    return MethodError(
        f"The {what} of step {step} are not finite: the training has diverged (non-finite weights or gradients), so "
        "nothing can be chosen. Lower the learning rate, or skip bad batches."
    )


def check_parameters(space: SearchSpace, optimizer: Optimizer) -> None:
    """Raise `MethodError` unless ``optimizer`` trains all parameters that units are made of."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    needed = unit_parameters(space)
    missing = [name for name, parameter in needed.items() if id(parameter) not in held]
    if not needed:
        raise MethodError("The search space has no units, so there is nothing to remove. print(space) tells why.")
    trained = [name for name, parameter in named_parameters(space.model) if id(parameter) in held]
    if not trained:
        raise MethodError(
            "The optimizer trains none of the parameters of the search space. Build both from the same model object: "
            "niwaki.search_space(model, ...) and an optimizer of model.parameters()."
        )
    frozen = [name for name, parameter in needed.items() if not parameter.requires_grad]
    if frozen:
        raise MethodError(
            f"{len(frozen)} of the {len(needed)} parameters that units are made of are frozen (requires_grad=False), "
            f"first {frozen[0]!r}, and a method would drive them to zero all the same. Pin them with `ignored` when "
            "you build the search space, or let them train."
        )
    if missing:
        others = "" if len(missing) < len(needed) else f"; it trains others only, first {trained[0]!r}"
        raise MethodError(
            f"The optimizer lacks {len(missing)} of the {len(needed)} parameters that units are made of, first "
            f"{missing[0]!r}{others}. Give it all parameters of the model, or pin the missing ones with `ignored` "
            "when you build the search space. If another optimizer trains them (Muon beside AdamW), build the method "
            "with one that steps both: a torch.optim.Optimizer with the param groups of both, whose step() calls "
            "theirs."
        )


def damaged(method: str, cause: Exception) -> MethodError:
    """The error when the state of ``method`` in a checkpoint is not what it saved."""
    what = f"it lacks {cause}" if isinstance(cause, KeyError) else str(cause)
    return MethodError(
        f"The state of {method} in the optimizer's checkpoint is damaged: {what}. Load another checkpoint, or load "
        "this one's optimizer before the method is attached and begin the method anew."
    )
