"""Follow axes through weights that are computed from a direction and a length."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, rule, sample

aten = torch.ops.aten


@rule(aten._weight_norm_interface.default)
def weight_norm(call: Call) -> list[Label]:
    """v times g over its norm, one norm for each position of ``dim``. The norm is the same without zeros; but where all
    of v is zero it is divided by. So v keeps its entries at removed positions of ``dim``, where the length g is zero.
    Where v is computed, no position of ``dim`` can be removed."""
    v, g, dim = call["v"], call["g"], call["dim"]
    call.equate(v.axes[dim], g.axes[dim])
    if not call.weight_norm_direction(v, dim):
        call.pin(g.axes[dim], "the norm of a removed weight would be zero, and it is a divisor")
    for i, axis in enumerate(v.axes):
        if i != dim and not v.zero[i]:
            call.pin(axis, "a norm runs over it, and its removed entries are not zero")
        elif i != dim and v.weight:
            call.zeroed_by_method(v, i)
    norms = [g.axes[dim] if i == dim else call.fixed(size) for i, size in enumerate(call.shapes[1])]
    axes = [g.axes[dim] if i == dim else axis for i, axis in enumerate(v.axes)]
    zero = [g.zero[dim] if i == dim else flag for i, flag in enumerate(v.zero)]
    return [call.label(axes, zero, v.weight and g.weight), call.label(norms, output=1)]


def _made(v: Tensor, g: Tensor, dim: int) -> Tensor:
    if v.shape[dim] != g.shape[dim]:  # the kernel itself would read past the end
        raise ValueError("the shapes do not fit")
    made: Tensor = torch.ops.aten._weight_norm_interface(v, g, dim)[0]
    return made


class _Normed(nn.Module):
    """A linear layer [6, 4] with weight norm, along its rows or its columns."""

    def __init__(self, dim: int, bent: str = "", twice: str = "") -> None:
        super().__init__()
        self.x, self.last = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(6, 5))
        self.v, self.g = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.rand((6, 1) if dim == 0 else (1, 4)) + 1)
        self.dim, self.bent, self.twice = dim, bent, twice
        self.other = nn.Parameter(torch.rand((1, 4) if dim == 0 else (6, 1)) + 1)

    def forward(self) -> Tensor:
        v = self.v.cos() if "v" in self.bent else self.v * 2 if "w" in self.bent else self.v
        w = _made(v, self.g.cos() if "g" in self.bent else self.g, self.dim)
        y = torch.relu(self.x @ w.T) @ self.last
        if self.twice == "other":  # the same directions, with lengths along the other dimension
            y = y + torch.relu(self.x @ _made(v, self.other, 1 - self.dim).T) @ self.last
        elif self.twice == "plain":
            y = y + torch.relu(self.x @ v.T) @ self.last
        return y


class _Alone(nn.Module):
    """A module that returns the weight itself."""

    def __init__(self, dim: int = 0, bent: bool = False) -> None:
        super().__init__()
        self.v, self.g = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.rand((6, 1) if dim == 0 else (1, 4)) + 1)
        self.dim, self.bent = dim, bent

    def forward(self) -> Tensor:
        return _made(self.v, self.g.cos() if self.bent else self.g, self.dim)


for _dim in (0, 1):
    sample(weight_norm)(lambda dim=_dim: _Normed(dim))
    for _bent in ("v", "g", "vg", "w"):
        sample(weight_norm)(lambda dim=_dim, bent=_bent: _Normed(dim, bent=bent))
    for _twice in ("other", "plain"):
        sample(weight_norm)(lambda dim=_dim, twice=_twice: _Normed(dim, twice=twice))
    sample(weight_norm)(lambda dim=_dim: _Alone(dim))
    sample(weight_norm)(lambda dim=_dim: _Alone(dim, bent=True))


@mutant(weight_norm)
def _all_norms_may_go(call: Call) -> list[Label]:
    v, g, dim = call["v"], call["g"], call["dim"]
    call.equate(v.axes[dim], g.axes[dim])
    return [call.label(v.axes, v.zero), call.opaque(1)]


@mutant(weight_norm)
def _computed_lengths_are_zero(call: Call) -> list[Label]:
    right = weight_norm(call)
    return [call.label(right[0].axes, call["v"].zero), right[1]]


@mutant(weight_norm)
def _directions_make(call: Call) -> list[Label]:
    right = weight_norm(call)
    return [call.label([axis.take(slice(None, None, -1)) for axis in right[0].axes]), right[1]]


@mutant(weight_norm)
def _only_the_length_counts(call: Call) -> list[Label]:
    v, g, dim = call["v"], call["g"], call["dim"]
    call.pin(v.axes[1 - dim], "")
    call.equate(v.axes[dim], g.axes[dim])
    return [call.label(v.axes, v.zero), call.opaque(1)]
