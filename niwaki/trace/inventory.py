"""The modules and tensors of a model, found in one walk."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from niwaki.core.names import named_modules


@dataclass(frozen=True, slots=True, eq=False)
class Inventory:
    """All modules, parameters and buffers by name, each once, under the first of its names."""

    modules: list[tuple[str, torch.nn.Module]]
    parameters: list[tuple[str, torch.nn.Parameter]]
    buffers: list[tuple[str, torch.Tensor]]

    @classmethod
    def of(cls, model: torch.nn.Module) -> Inventory:
        """Look through ``model``."""
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
        """The dotted name of the attribute that is ``tensor``, or a container of it, where it is neither parameter nor
        buffer; empty where no module holds it."""
        for path, module in self.modules:
            for name, value in vars(module).items():
                held = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
                if value is tensor or any(item is tensor for item in held):
                    return f"{path}.{name}" if path else name
        return ""

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Parameters and buffers."""
        return [tensor for _, tensor in (*self.parameters, *self.buffers)]
