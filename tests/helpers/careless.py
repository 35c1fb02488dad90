"""A network that writes whatever it can get at, and what must be as before after it has been looked at."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Careless(nn.Module):
    """Writes whatever it can get at: buffers, attributes, containers, its own weights, gradients, random state."""

    def __init__(self, fails: bool = False) -> None:
        super().__init__()
        self.layer, self.norm, self.drop = nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.fails, self.calls, self.cache, self.seen, self.names = fails, 0, {}, [1], {"a"}
        self.register_buffer("count", torch.zeros(1))
        self.width = 4

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.cache["x"] = x
        self.seen.append(2)
        self.names.add("b")
        self.extra = x
        self.count += 1
        self.count = self.count + 1
        np.random.rand(), random.random(), torch.rand(1)
        with torch.no_grad():
            self.layer.weight.mul_(1.5)
        y = self.drop(self.norm(self.layer(x)))
        if self.fails:
            raise RuntimeError("on purpose")
        return y[:, : self.width]


def everything(model: Careless) -> dict[str, Any]:
    state: dict[str, Any] = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state |= {f"id {name}": id(tensor) for name, tensor in model.state_dict(keep_vars=True).items()}
    state |= {f"training {name}": module.training for name, module in model.named_modules()}
    state |= {"calls": model.calls, "cache": dict(model.cache), "seen": list(model.seen), "names": set(model.names)}
    state |= {"attributes": sorted(model.__dict__), "types": (type(model.width), type(model.layer.in_features))}
    state |= {"containers": (id(model.cache), id(model.seen), id(model.names))}
    state |= {"grad": None if model.layer.weight.grad is None else model.layer.weight.grad.clone()}
    state |= {
        "torch": torch.random.get_rng_state(),
        "numpy": np.random.get_state()[1].copy(),
        "python": random.getstate(),
    }
    state |= {"hooks": (len(model._forward_hooks), len(torch.nn.modules.module._global_forward_hooks))}
    state |= {"requires": [parameter.requires_grad for parameter in model.parameters()]}
    return state


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert before.keys() == after.keys()
    for name, value in before.items():
        if isinstance(value, Tensor):
            assert torch.equal(value, after[name]), name
        elif isinstance(value, np.ndarray):
            assert (value == after[name]).all(), name
        else:
            assert value == after[name], name
