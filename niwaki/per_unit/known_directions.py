"""Optimizers whose direction is read from their state after the step: Adam and its kin, SGD with momentum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW

from niwaki.core.scalars import is_number
from niwaki.per_unit.direction import Direction, Held, KnownOptimizer, Part, family, itself


@family(Adam, AdamW)
class AdamDirection(KnownOptimizer):
    """``torch.optim.Adam`` and ``AdamW``: d = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps) after t steps."""

    def knows(self, group: Mapping[str, Any]) -> bool:
        """Unless the decay rates of its moments are tensors, which is rare and would wait for their device."""
        return not any(isinstance(beta, Tensor) for beta in group["betas"])

    def directions(self, held: Sequence[Held]) -> list[Direction]:
        """With c = sqrt(1 - b2^t): c / (1 - b1^t) * m / (sqrt(v) + c eps), in which c is not a tensor as large as v."""
        made = []
        for one, (first, second) in zip(held, _corrections(held), strict=True):
            state, root = one.state, second**0.5
            square = state["max_exp_avg_sq"] if one.group["amsgrad"] else state["exp_avg_sq"]
            parts = (state["exp_avg"], square, one.group["eps"] * root)
            made.append(Direction(_preconditioned, parts, root / first))
        return made


def _preconditioned(parts: Sequence[Part], memory: Tensor) -> Tensor:
    mean, square, epsilon = parts
    assert isinstance(square, Tensor)
    return torch.div(mean, torch.sqrt(square, out=memory).add_(epsilon), out=memory)


def _corrections(held: Sequence[Held]) -> list[tuple[Any, Any]]:
    """1 - b1^t and 1 - b2^t of each: numbers where t lies in the host's memory, else tensors on t's device."""
    steps: list[Any] = [_count(one.state["step"]) for one in held]
    found: list[tuple[Any, Any]] = []
    by_kind: dict[tuple[Any, ...], list[int]] = {}
    for place, (one, step) in enumerate(zip(held, steps, strict=True)):
        betas = tuple(one.group["betas"])
        if isinstance(step, Tensor):
            by_kind.setdefault((step.device, one.weight.dtype, betas), []).append(place)
            step = 0
        found.append((1 - betas[0] ** step, 1 - betas[1] ** step))
    for (_, dtype, betas), places in by_kind.items():
        counts = torch.stack([steps[place] for place in places])
        counts = counts.to(torch.promote_types(counts.dtype, dtype))
        for place, first, second in zip(places, *((1 - beta**counts).unbind() for beta in betas), strict=True):
            found[place] = (first, second)
    return found


def _count(step: Any) -> Any:
    return step.detach().numpy().item() if isinstance(step, Tensor) and step.device.type == "cpu" else step


_MOST = 0.5  # of lr * weight decay, beyond which the weights before the step cannot be told from those after it


@family(SGD)
class SGDDirection(KnownOptimizer):
    """``torch.optim.SGD``. Not with Nesterov's momentum, which may overwrite the gradients that it is made of."""

    def knows(self, group: Mapping[str, Any]) -> bool:
        """Without momentum the decay pulls at the weights before the step: it must be a small share, and a number."""
        if group["nesterov"]:
            return False
        rate, decay = group["lr"], group["weight_decay"]
        decays_little = not isinstance(rate, Tensor) and is_number(decay) and rate * decay < _MOST
        return bool(group["momentum"] or decay == 0 or decays_little)

    def directions(self, held: Sequence[Held]) -> list[Direction]:
        """The momentum buffer; or d = h + decay x where x = y + lr d are the weights before the step."""
        return [_direction(one) for one in held]


def _direction(held: Held) -> Direction:
    group, sign = held.group, -1.0 if held.group["maximize"] else 1.0
    if group["momentum"]:
        momentum: Tensor = held.state["momentum_buffer"]
        return Direction(itself, (momentum.to_dense() if momentum.is_sparse else momentum,))
    decay = group["weight_decay"]
    if decay == 0:
        return Direction(itself, (held.gradient,), sign)
    return Direction(_decayed, (held.gradient, held.weight, sign * decay), sign / (1 - group["lr"] * decay))


def _decayed(parts: Sequence[Part], memory: Tensor) -> Tensor:
    gradient, weight, decay = parts
    return torch.mul(weight, decay, out=memory).add_(gradient)
