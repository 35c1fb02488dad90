"""SGD: d is the momentum; without momentum the gradient, with the weight decay that is part of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD

from niwaki.core.scalars import is_number
from niwaki.methods.direction.families import Family, Held, family
from niwaki.methods.direction.ways import Direction, Part, itself

_MOST = 0.5  # of lr * weight decay, beyond which the weights before the step cannot be told from those after it


@family(SGD)
class OfSGD(Family):
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
