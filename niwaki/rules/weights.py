"""Weights that are computed: a direction and a length, and what follows a matrix product with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten


@rule(aten._weight_norm_interface.default)
def weight_norm(call: Call) -> list[Label]:
    """v times g over its norm, one norm for each position of ``dim``. The norm does not miss zeros; but where all that
    it runs over is zero one divides by it, so nothing of ``dim`` can be removed."""
    v, g, dim = call["v"], call["g"], call["dim"]
    call.pin(v.axes[dim], "the norm of a removed weight would be zero, and one divides by it")
    call.pin(g.axes[dim], "the norm of a removed weight would be zero, and one divides by it")
    for i, axis in enumerate(v.axes):
        if i != dim and not v.zero[i]:
            call.pin(axis, "a norm runs over it, and its removed entries are not zero")
        elif i != dim and v.weight:
            call.drives(v, i)
    norms = [call.fixed(size, "it holds norms") for size in call.shapes[1]]
    zero = [i != dim and flag for i, flag in enumerate(v.zero)]
    return [call.label(v.axes, zero, v.weight), call.label(norms, output=1)]


def _made(v: Tensor, g: Tensor, dim: int) -> Tensor:
    if len(v.transpose(0, dim)) != len(g.transpose(0, dim)):  # the kernel itself would read past the end
        raise ValueError("the shapes do not fit")
    made: Tensor = torch.ops.aten._weight_norm_interface(v, g, dim)[0]
    return made


class _Normed(nn.Module):
    """A linear layer [6, 4] with a weight of that kind, with norms for its rows or for its columns."""

    def __init__(self, dim: int, bent: bool = False) -> None:
        super().__init__()
        self.x, self.last = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(6, 5))
        self.v, self.g = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.rand((6, 1) if dim == 0 else (1, 4)) + 1)
        self.dim, self.bent = dim, bent

    def forward(self) -> Tensor:
        v = self.v.cos() if self.bent else self.v
        w = _made(v, self.g, self.dim)
        return torch.relu(self.x @ w.T) @ self.last


class _Alone(nn.Module):
    """The weight itself."""

    def __init__(self, dim: int = 0) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.rand((6, 1) if dim == 0 else (1, 4)) + 1)
        self.dim = dim

    def forward(self) -> Tensor:
        return _made(self.v, self.g, self.dim)


for _dim in (0, 1):
    sample(weight_norm)(lambda dim=_dim: _Normed(dim))
    sample(weight_norm)(lambda dim=_dim: _Normed(dim, bent=True))
    sample(weight_norm)(lambda dim=_dim: _Alone(dim))


@mutant(weight_norm)
def _all_norms_may_go(call: Call) -> list[Label]:
    v, g, dim = call["v"], call["g"], call["dim"]
    call.equate(v.axes[dim], g.axes[dim])
    return [call.label(v.axes, v.zero), call.opaque(1)]


@mutant(weight_norm)
def _only_the_length_counts(call: Call) -> list[Label]:
    v, g, dim = call["v"], call["g"], call["dim"]
    call.pin(v.axes[1 - dim], "")
    call.equate(v.axes[dim], g.axes[dim])
    return [call.label(v.axes, v.zero), call.opaque(1)]
