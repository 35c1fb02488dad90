"""Weights that are computed: a direction and a length, and what is rounded to a grid while it is trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten


@rule(aten._weight_norm_interface.default)
def weight_norm(call: Call) -> list[Label]:
    """v times g over its norm, one norm for each position of ``dim``. The norm does not miss zeros; but where all that
    it runs over is zero one divides by it. So what v has at removed positions of ``dim`` stays: the length g is zero
    there. Where v is computed nothing of ``dim`` can be removed."""
    v, g, dim = call["v"], call["g"], call["dim"]
    call.equate(v.axes[dim], g.axes[dim])
    if not call.directs(v, dim):
        call.pin(g.axes[dim], "the norm of a removed weight would be zero, and one divides by it")
    for i, axis in enumerate(v.axes):
        if i != dim and not v.zero[i]:
            call.pin(axis, "a norm runs over it, and its removed entries are not zero")
        elif i != dim and v.weight:
            call.drives(v, i)
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
    """A linear layer [6, 4] with a weight of that kind, with norms for its rows or for its columns."""

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
    """The weight itself."""

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


@rule(
    aten.fake_quantize_per_tensor_affine_cachemask.default,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default,
)
def one_grid(call: Call) -> list[Label]:
    """Entry by entry, and a mask. Zero is on the grid: torch sees to that where its place is a number."""
    x: Label = call["self"]
    stays = not isinstance(call["zero_point"], Label)
    return [call.label(x.axes, [stays and flag for flag in x.zero], x.weight), call.label(x.axes, output=1)]


@rule(aten.fake_quantize_per_channel_affine_cachemask.default)
def own_grids(call: Call) -> list[Label]:
    """The same with a grid for each position of one dimension."""
    x, dim = call["self"], call["axis"]
    call.equate(x.axes[dim], call["scale"].axes[0])
    call.equate(x.axes[dim], call["zero_point"].axes[0])
    return [call.label(x.axes, weight=x.weight), call.label(x.axes, output=1)]


class _Rounded(nn.Module):
    """A parameter [4, 6], or its sigmoid, on a grid of tenths, or of a width for each column."""

    def __init__(self, place: int = 0, bent: bool = False, how: str = "one") -> None:
        super().__init__()
        self.a, self.how, self.place, self.bent = nn.Parameter(torch.randn(4, 6)), how, place, bent
        self.scale = nn.Buffer(torch.rand(6) / 10 + 0.05)
        self.places = nn.Buffer(torch.tensor([0, 1, 0, 2, 0, 3], dtype=torch.int32))

    def forward(self) -> Tensor:
        x = self.a.sigmoid() if self.bent else self.a * 2
        if self.how == "columns":
            return torch.fake_quantize_per_channel_affine(x, self.scale.float(), self.places, 1, -8, 7)
        if self.how == "tensors":
            return torch.fake_quantize_per_tensor_affine(x, torch.tensor(0.1), torch.tensor(20), -8, 7)
        return torch.fake_quantize_per_tensor_affine(x, 0.1, self.place, -8, 7)


sample(one_grid)(_Rounded)
sample(one_grid)(lambda: _Rounded(place=3))
sample(one_grid)(lambda: _Rounded(bent=True))
sample(one_grid)(lambda: _Rounded(how="tensors"))
sample(own_grids)(lambda: _Rounded(how="columns"))
sample(own_grids)(lambda: _Rounded(how="columns", bent=True))


@mutant(one_grid)
def _grid_gives_zero(call: Call) -> list[Label]:
    return [call.label(made.axes, [True] * 2, output=output) for output, made in enumerate(one_grid(call))]


@mutant(one_grid)
def _bent_stays_zero(call: Call) -> list[Label]:
    first, mask = one_grid(call)
    return [call.label(first.axes, call["self"].zero), mask]


@mutant(own_grids)
def _grids_stay(call: Call) -> list[Label]:
    axes = call["self"].axes
    return [call.label(axes), call.label(axes, output=1)]


@mutant(own_grids)
def _grids_give_zero(call: Call) -> list[Label]:
    first, mask = own_grids(call)
    return [call.label(first.axes, [True] * 2), mask]
