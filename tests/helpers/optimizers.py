"""Optimizers of torch in their variants, comparison of states to the bit, and a count of operators."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {"lr": 0.05, "foreach": False}),
    "SGD foreach": (torch.optim.SGD, {"lr": 0.05, "foreach": True}),
    "SGD momentum": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-2}),
    "SGD nesterov": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "nesterov": True}),
    "SGD fused": (torch.optim.SGD, {"lr": 0.05, "momentum": 0.9, "fused": True}),
    "SGD maximize": (torch.optim.SGD, {"lr": 0.001, "maximize": True}),
    "Adam": (torch.optim.Adam, {"lr": 0.02, "foreach": False}),
    "Adam foreach": (torch.optim.Adam, {"lr": 0.02, "foreach": True}),
    "Adam fused": (torch.optim.Adam, {"lr": 0.02, "fused": True}),
    "Adam amsgrad": (torch.optim.Adam, {"lr": 0.02, "amsgrad": True}),
    "AdamW": (torch.optim.AdamW, {"lr": 0.02, "foreach": False}),
    "AdamW foreach": (torch.optim.AdamW, {"lr": 0.02, "foreach": True}),
    "AdamW fused": (torch.optim.AdamW, {"lr": 0.02, "fused": True}),
    "NAdam": (torch.optim.NAdam, {"lr": 0.02}),
    "RAdam": (torch.optim.RAdam, {"lr": 0.02}),
    "Adamax": (torch.optim.Adamax, {"lr": 0.02}),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.005, "momentum": 0.9}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.05}),
    "Adadelta": (torch.optim.Adadelta, {"lr": 1.0}),
    "Rprop": (torch.optim.Rprop, {"lr": 0.01}),
    "ASGD": (torch.optim.ASGD, {"lr": 0.05}),
    "Adafactor": (torch.optim.Adafactor, {"lr": 0.02}),
}


def same(first: Any, second: Any) -> None:
    """Nested state, equal to the bit."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second)
    elif isinstance(first, dict):
        assert first.keys() == second.keys()
        for key in first:
            same(first[key], second[key])
    elif isinstance(first, list | tuple):
        assert len(first) == len(second)
        for one, other in zip(first, second, strict=True):
            same(one, other)
    else:
        assert first == second


class Calls(TorchDispatchMode):
    """Counts every operator."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))
