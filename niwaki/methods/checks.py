"""What methods check of their arguments and of their saved state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from niwaki.budget import is_number, is_whole
from niwaki.errors import MethodError


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
