"""A small Llama-like network, and LoRA layers that are built as peft's are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LoraLinear(nn.Module):
    """base_layer(x) + scaling B A x, with peft's names."""

    def __init__(self, base: nn.Module, rank: int = 2, scale: float = 1.5) -> None:
        super().__init__()
        weight = base.weight
        assert isinstance(weight, Tensor)
        rows, columns = weight.shape
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"default": nn.Linear(columns, rank, bias=False, dtype=weight.dtype)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, rows, bias=False, dtype=weight.dtype)})
        self.scaling = {"default": scale}
        nn.init.zeros_(self.lora_B["default"].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.scaling["default"] * self.lora_B["default"](self.lora_A["default"](x))


class Stored(nn.Module):
    """A linear layer whose weight is stored as [in, out]."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(columns, rows) / columns**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class LoraStored(nn.Module):
    """The same beside such a layer."""

    def __init__(self, base: Stored, rank: int = 2) -> None:
        super().__init__()
        columns, rows = base.weight.shape
        self.base_layer, self.fan_in_fan_out = base, True
        self.lora_A = nn.ModuleDict({"default": nn.Linear(columns, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, rows, bias=False)})
        self.scaling = {"default": 0.5}

    def forward(self, x: Tensor) -> Tensor:
        return self.base_layer(x) + self.scaling["default"] * self.lora_B["default"](self.lora_A["default"](x))


class Block(nn.Module):
    """Attention with two heads, then a gated layer, in a residual stream."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.heads, self.size = 4, width // 4
        self.before, self.between = nn.RMSNorm(width), nn.RMSNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.gate, self.up = (nn.Linear(width, inner, bias=False) for _ in range(2))
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        y = self.before(x)
        q, k, v = (p(y).view(batch, length, self.heads, self.size).transpose(1, 2) for p in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
        x = x + self.o(y.reshape(batch, length, self.heads * self.size))
        y = self.between(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class Llama(nn.Module):
    """Tokens to logits."""

    def __init__(self, width: int = 16, inner: int = 20, layers: int = 2, vocabulary: int = 11) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, inner) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width), nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def adapted(model: nn.Module, *, names: tuple[str, ...] = ("q", "k", "v", "o", "gate", "up", "down")) -> nn.Module:
    """``model`` frozen, with an adapter beside each linear layer of one of these names."""
    model.requires_grad_(False)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if name in names and isinstance(child, nn.Linear):
                setattr(module, name, LoraLinear(child))
    return model


def lora_layers(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """The LoRA layers by name."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLinear | LoraStored):
            yield name, module


@torch.no_grad()
def effective(module: Any) -> Tensor:
    """W + s B A."""
    (adapter,) = module.scaling
    product = module.scaling[adapter] * module.lora_B[adapter].weight @ module.lora_A[adapter].weight
    return module.base_layer.weight + (product.T if getattr(module, "fan_in_fan_out", False) else product)


@torch.no_grad()
def merged(model: nn.Module) -> nn.Module:
    """``model`` itself, without its adapters, their products in the weights."""
    for name, module in list(lora_layers(model)):
        module.base_layer.weight.copy_(effective(module))
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, module.base_layer)
    return model
