"""Which way an optimizer moves each parameter: x goes to x - lr * d. Here d is found, without its weight decay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

Direction = Callable[[Mapping[str, Any], Mapping[str, Any], Tensor, Tensor], Tensor]


def _sgd(group: Mapping[str, Any], state: Mapping[str, Any], x: Tensor, gradient: Tensor) -> Tensor:
    """The gradient, or the momentum buffer (which holds the coupled weight decay of the steps before)."""
    signed = -gradient if group["maximize"] else gradient
    buffer: Tensor | None = state.get("momentum_buffer")
    if not group["momentum"] or buffer is None:
        return signed
    return torch.add(signed, buffer, alpha=group["momentum"]) if group["nesterov"] else buffer


def _adam(group: Mapping[str, Any], state: Mapping[str, Any], x: Tensor, gradient: Tensor) -> Tensor:
    """m / (sqrt(v) + eps), both with their bias corrections."""
    if "exp_avg" not in state:
        return -gradient if group["maximize"] else gradient
    beta1, beta2 = group["betas"]
    step, second = state["step"], state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
    step = step.to(x.device) if isinstance(step, Tensor) else step
    length: Tensor = (second / (1 - beta2**step)).sqrt() + group["eps"]
    first: Tensor = state["exp_avg"] / (1 - beta1**step)
    return first / length


_KNOWN: dict[type[Optimizer], Direction] = {SGD: _sgd, Adam: _adam, AdamW: _adam}
_DECOUPLED = tuple(
    kind for kind in (getattr(torch.optim, name, None) for name in ("AdamW", "Muon", "Adafactor")) if kind is not None
)


def known(optimizer: Optimizer) -> bool:
    """Whether the direction follows from the optimizer's state, so that no previous iterate is needed."""
    return type(optimizer) in _KNOWN


def direction(optimizer: Optimizer, group: Mapping[str, Any], parameter: Tensor) -> Tensor:
    """The direction of the step that a `known` optimizer has just taken, defined at learning rate 0 as well.

    >>> x = torch.nn.Parameter(torch.ones(2))
    >>> optimizer = torch.optim.SGD([x], lr=0.0, momentum=0.9)
    >>> x.grad = torch.tensor([1.0, 2.0])
    >>> optimizer.step()
    >>> direction(optimizer, optimizer.param_groups[0], x)
    tensor([1., 2.])
    """
    gradient = parameter.grad
    if gradient is None:
        return torch.zeros_like(parameter)
    gradient = gradient.to_dense() if gradient.is_sparse else gradient
    return _KNOWN[type(optimizer)](group, optimizer.state.get(parameter, {}), parameter, gradient)


def decay(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """The rate of decoupled weight decay: what x shrinks by in a step, over the learning rate, beside the direction."""
    if isinstance(optimizer, _DECOUPLED) or group.get("decoupled_weight_decay", False):
        return float(group.get("weight_decay", 0.0))
    return 0.0
