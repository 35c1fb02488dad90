"""What of an optimizer's step is not its direction: decoupled weight decay, which says nothing about the loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

_DECOUPLED = tuple(
    kind for kind in (getattr(torch.optim, name, None) for name in ("AdamW", "Muon", "Adafactor")) if kind is not None
)


def decay(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """The rate of decoupled weight decay: what x shrinks by in a step, over the learning rate, beside the direction.

    >>> x = torch.nn.Parameter(torch.ones(2))
    >>> decay(torch.optim.AdamW([x], weight_decay=0.1), {"weight_decay": 0.1})
    0.1
    >>> decay(torch.optim.SGD([x], lr=0.1, weight_decay=0.1), {"weight_decay": 0.1})
    0.0
    """
    if isinstance(optimizer, _DECOUPLED) or group.get("decoupled_weight_decay", False):
        return float(group.get("weight_decay", 0.0))
    return 0.0


def rests(optimizer: Optimizer) -> bool:
    """Whether the optimizer's next step moves nothing, at learning rate 0: its direction is then the gradient's.

    A learning rate that is a tensor is not looked at, since that would wait for its device.
    """
    rates = [group.get("lr") for group in optimizer.param_groups]
    return all(isinstance(rate, float | int) and rate == 0 for rate in rates)
