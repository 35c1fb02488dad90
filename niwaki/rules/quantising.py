"""Numbers that are rounded to a grid while a network is trained, as they will be afterwards."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten


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
