"""The modules and tensors of a model, found in one walk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from niwaki.core.names import named_modules

_OWN = frozenset({"_parameters", "_buffers", "_modules"})


@dataclass(frozen=True, eq=False)
class Inventory:
    """All modules, parameters and buffers by name, each once, under the first of its names."""

    modules: list[tuple[str, torch.nn.Module]]
    parameters: list[tuple[str, torch.nn.Parameter]]
    buffers: list[tuple[str, torch.Tensor]]

    @classmethod
    def of(cls, model: torch.nn.Module) -> Inventory:
        """The inventory of ``model``."""
        modules = list(named_modules(model))
        parameters: dict[int, tuple[str, torch.nn.Parameter]] = {}
        buffers: dict[int, tuple[str, torch.Tensor]] = {}
        for path, module in modules:
            prefix = f"{path}." if path else ""
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    parameters.setdefault(id(parameter), (prefix + name, parameter))
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    buffers.setdefault(id(buffer), (prefix + name, buffer))
        return cls(modules, list(parameters.values()), list(buffers.values()))

    def attribute_of(self, tensor: torch.Tensor) -> str:
        """The dotted name of the attribute that is ``tensor``, or a container of it, for a tensor that is neither
        parameter nor buffer; empty where no module holds it."""
        path, name, module = self._holders.get(id(tensor), ("", "", None))
        held = module is not None and any(item is tensor for item in _tensors_of(vars(module).get(name)))
        return (f"{path}.{name}" if path else name) if held else ""

    @cached_property
    def _holders(self) -> dict[int, tuple[str, str, torch.nn.Module]]:
        """The modules that hold tensors beside their parameters and buffers, by the identity of the tensor."""
        found: dict[int, tuple[str, str, torch.nn.Module]] = {}
        for path, module in self.modules:
            for name, value in vars(module).items():
                if name not in _OWN:
                    for tensor in _tensors_of(value):
                        found.setdefault(id(tensor), (path, name, module))
        return found

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Parameters and buffers."""
        return [tensor for _, tensor in (*self.parameters, *self.buffers)]


def _tensors_of(value: Any) -> Iterable[torch.Tensor]:
    """An attribute that is a tensor, or the tensors among its items."""
    if isinstance(value, torch.Tensor):
        return (value,)
    items: Iterable[Any] = ()
    if isinstance(value, dict):
        items = value.values()
    elif isinstance(value, (list, tuple)):
        items = value
    return [item for item in items if isinstance(item, torch.Tensor)]
