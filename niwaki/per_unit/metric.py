"""The metric of an optimizer: the diagonal h that its steps divide the gradient by, read from its state.

An optimizer that steps x <- x - lr g / h minimises <g, z> + ||z - x||_h^2 / (2 lr) with ||v||_h^2 = sum h_i v_i^2: in
that metric, and in no other, a proximal step after it has the penalised minimum as its fixed point.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Adamax, AdamW, NAdam, Optimizer, RAdam, RMSprop

from niwaki.errors import MethodError

Metric = Callable[[Mapping[str, Any], Mapping[str, Any]], Tensor | None]  # of a param group and a parameter's state

_FEW = 5  # gradients that count: up to here the variance is too uncertain to divide by

_REGISTRY: dict[type[Optimizer], Metric] = {}


def metric(*kinds: type[Optimizer]) -> Callable[[Metric], Metric]:
    """Register the decorated function for optimizers of exactly these classes. It returns h of a parameter, of the
    parameter's shape; None where that is 1 for all entries."""

    def register(found: Metric) -> Metric:
        for kind in kinds:
            if kind in _REGISTRY:
                raise MethodError(f"The metric of {kind.__qualname__} is known already. Register another class.")
            _REGISTRY[kind] = found
        return found

    return register


def metrics() -> dict[type[Optimizer], Metric]:
    """All that are registered, by the class of the optimizer."""
    return dict(_REGISTRY)


def metric_of(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> Tensor | None:
    """h of a ``parameter`` that ``group`` of ``optimizer`` holds; None where it is 1, or is not known: before the first
    step, and for optimizers that are not registered."""
    found, state = _REGISTRY.get(type(optimizer)), optimizer.state.get(parameter, {})
    return None if found is None or not state else found(group, state)


@metric(SGD)
def _euclidean(group: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """1."""
    return None


@metric(Adam, AdamW, NAdam)
def _of_second_moment(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """sqrt(v / (1 - b2^t)) + eps."""
    square: Tensor = state["max_exp_avg_sq"] if group.get("amsgrad") else state["exp_avg_sq"]
    step, beta = state["step"], group["betas"][1]
    corrected = 1 - beta**step
    return (square / (corrected.to(square) if isinstance(corrected, Tensor) else corrected)).sqrt_().add_(group["eps"])


@metric(RAdam)
def _of_rectified_moment(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """(sqrt(v) + eps) / (sqrt(1 - b2^t) r), with r the rectification of the variance; 1 while there is none."""
    square: Tensor = state["exp_avg_sq"]
    step, beta = float(state["step"]), group["betas"][1]
    corrected, most = 1 - beta**step, 2 / (1 - beta) - 1
    length = most - 2 * step * beta**step / corrected  # in 64 bits: the difference is small
    if length <= _FEW:
        return torch.ones_like(square)
    rectified = ((length - 4) * (length - 2) * most / ((most - 4) * (most - 2) * length)) ** 0.5
    return square.sqrt().add_(group["eps"]).div_(corrected**0.5 * rectified)


@metric(Adamax)
def _of_largest_gradient(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """The largest gradient, as it decays; eps is in it."""
    largest: Tensor = state["exp_inf"]
    return largest.clone()


@metric(RMSprop)
def _of_square_average(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """sqrt(v) + eps, with the mean of the gradients taken off v if it is centered."""
    square: Tensor = state["square_avg"]
    if group["centered"]:
        square = (square - state["grad_avg"].square()).clamp_(min=0)
    return square.sqrt().add_(group["eps"])


@metric(Adagrad)
def _of_square_sum(group: Mapping[str, Any], state: Mapping[str, Any]) -> Tensor:
    """sqrt(sum of squares) + eps."""
    total: Tensor = state["sum"]
    return total.sqrt().add_(group["eps"])
