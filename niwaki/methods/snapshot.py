"""Everything that training steps change, kept so that they can be undone: weights, buffers and optimizer state."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.names import named_buffers


@dataclass(frozen=True, slots=True, eq=False)
class TrainingSnapshot:
    """``weights`` and ``state``: of each parameter of the optimizer, in its order. ``buffers``: the model's, by name.
    Param groups that were added to the optimizer later come behind, and are let be. ``gates``: of terms without
    parameters, if there are any.

    Numbers that an optimizer keeps in its param groups are not among it: schedulers write there, and go on.
    """

    weights: list[Tensor]
    buffers: dict[str, Tensor]
    state: list[dict[str, Any]]
    gates: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, optimizer: Optimizer, gates: Tensor | None = None) -> TrainingSnapshot:
        """A copy of this moment."""
        parameters = _parameters(optimizer)
        return cls(
            [parameter.detach().clone() for parameter in parameters],
            {name: buffer.detach().clone() for name, buffer in named_buffers(model)},
            [_copied(optimizer.state[parameter]) if parameter in optimizer.state else {} for parameter in parameters],
            None if gates is None else gates.detach().clone(),
        )

    @torch.no_grad()
    def restore(self, model: nn.Module, optimizer: Optimizer, gates: Tensor | None = None) -> None:
        """Undo all steps since then, in ``gates`` too. Gradients stay."""
        if gates is not None and self.gates is not None:
            gates.copy_(self.gates)
        for parameter, weight, saved in zip(_parameters(optimizer), self.weights, self.state, strict=False):
            parameter.copy_(weight)
            now = optimizer.state.pop(parameter, {})
            if saved:
                optimizer.state[parameter] = _copied(saved, now)
        for name, buffer in named_buffers(model):
            if name in self.buffers:
                buffer.copy_(self.buffers[name])

    def data(self) -> dict[str, Any]:
        """Tensors, numbers, lists and dictionaries."""
        found = {"weights": self.weights, "buffers": self.buffers, "state": self.state}
        return found if self.gates is None else {**found, "gates": self.gates}

    @classmethod
    def check(cls, data: Mapping[str, Any], model: nn.Module, optimizer: Optimizer) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` unless `restore` could follow ``data``."""
        shapes = [tuple(weight.shape) for weight in data["weights"]]
        here = [[tuple(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]
        if not any(shapes == sum(here[: number + 1], []) for number in range(len(here))):
            raise ValueError("its snapshot holds the weights of another optimizer")
        if len(data["state"]) != len(shapes):
            raise ValueError("its snapshot holds the state of another optimizer")
        buffers = dict(named_buffers(model))
        if any(name not in buffers or buffers[name].shape != value.shape for name, value in data["buffers"].items()):
            raise ValueError("its snapshot holds the buffers of another model")


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _copied(value: Any, now: Any = None) -> Any:
    """A deep copy; tensors like those of ``now``, which after a resume may be of another device and dtype."""
    if isinstance(value, Tensor):
        like = now if isinstance(now, Tensor) else value
        return value.detach().to(like.device, like.dtype, copy=True)
    if isinstance(value, dict):
        return {key: _copied(item, now.get(key) if isinstance(now, dict) else None) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return copy.deepcopy(value)
