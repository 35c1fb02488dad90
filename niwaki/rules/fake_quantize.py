"""Follow axes through fake quantisation: numbers are rounded in training as they will be after quantisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, rule, sample

aten = torch.ops.aten


@rule(
    aten.fake_quantize_per_tensor_affine_cachemask.default,
    aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default,
)
def one_grid(call: Call) -> list[Label]:
    """Entry by entry, with a mask. Zero is on the grid: torch checks this where the zero point is a number."""
    x: Label = call["self"]
    stays = not isinstance(call["zero_point"], Label)
    return [call.label(x.axes, [stays and flag for flag in x.zero], x.weight), call.label(x.axes, output=1)]


@rule(aten.fake_quantize_per_channel_affine_cachemask.default)
def own_grids(call: Call) -> list[Label]:
    """The same with a grid for each position of one dimension. torch refuses integer zero points outside of the grid,
    so zero is on it; it does not check real ones."""
    x, dim = call["self"], call["axis"]
    call.equate(x.axes[dim], call["scale"].axes[0])
    call.equate(x.axes[dim], call["zero_point"].axes[0])
    stays = not call["zero_point"].dtype.is_floating_point
    return [call.label(x.axes, [stays and flag for flag in x.zero], x.weight), call.label(x.axes, output=1)]


@rule(aten._fake_quantize_learnable_per_tensor_affine.default)
def learnt_grid(call: Call) -> Label:
    """As `one_grid`, with a learnt grid; its zero point is moved onto the grid."""
    return call.label(call["self"].axes, call["self"].zero, call["self"].weight)


@rule(aten._fake_quantize_learnable_per_channel_affine.default)
def learnt_grids(call: Call) -> Label:
    """As `own_grids`, with learnt grids."""
    x, dim = call["self"], call["axis"]
    call.equate(x.axes[dim], call["scale"].axes[0])
    call.equate(x.axes[dim], call["zero_point"].axes[0])
    return call.label(x.axes, x.zero, x.weight)


@rule(aten._fused_moving_avg_obs_fq_helper.default)
def observed(call: Call) -> list[Label]:
    """As `own_grids`, with a grid over the range of all entries so far; zero lies in the range. An observer that is on
    takes the smallest and the largest entry; removed zeros change neither if entries of both signs remain."""
    x, dim = call["self"], call["ch_axis"] if call["per_row_fake_quant"] else None
    for name in ("running_min", "running_max", "scale", "zero_point"):
        if dim is not None and call[name].shape == (x.shape[dim],):  # before the first pass they have another size
            call.equate(x.axes[dim], call[name].axes[0])
    for i in (i for i in range(len(x.axes)) if i != dim):
        if not x.zero[i]:
            call.inexact(x.axes[i], "an observer takes the range of its entries, and its removed entries are not zero")
        elif x.weight:
            call.zeroed_by_method(x, i)
    call.note(_OBSERVERS)
    return [call.label(x.axes, x.zero, x.weight), call.label(x.axes, output=1)]


_OBSERVERS = (
    "Observers of fake quantisation take the range of all entries, those of removed units too. While they are on, the "
    "cut network sees the same range only if the remaining entries lie on both sides of zero, or if no entry can be "
    "negative; torch.ao.quantization.disable_observer turns them off."
)


class _Rounded(nn.Module):
    """A parameter [4, 6], or its sigmoid, on a grid of tenths, or of a width for each column."""

    def __init__(self, place: int = 0, bent: bool = False, how: str = "one") -> None:
        super().__init__()
        self.a, self.how, self.place, self.bent = nn.Parameter(torch.randn(4, 6)), how, place, bent
        self.scale = nn.Buffer(torch.rand(6) / 10 + 0.05)
        self.zero_points = nn.Buffer(torch.tensor([0, 1, 0, 2, 0, 3], dtype=torch.int32))

    def forward(self) -> Tensor:
        x = self.a.sigmoid() if self.bent else self.a * 2
        if self.how == "columns":
            return torch.fake_quantize_per_channel_affine(x, self.scale.float(), self.zero_points, 1, -8, 7)
        if self.how == "columns with real zeros":
            return torch.fake_quantize_per_channel_affine(x, self.scale.float(), 6.0 + self.zero_points, 1, -8, 7)
        if self.how == "learnt columns":
            scale, zero_points = self.scale.float(), self.zero_points.float()
            return torch._fake_quantize_learnable_per_channel_affine(x.float(), scale, zero_points, 1, -8, 7)
        if self.how == "learnt":
            return torch._fake_quantize_learnable_per_tensor_affine(x, torch.tensor([0.1]), torch.tensor([3.0]), -8, 7)
        if self.how == "tensors":
            return torch.fake_quantize_per_tensor_affine(x, torch.tensor(0.1), torch.tensor(20), -8, 7)
        return torch.fake_quantize_per_tensor_affine(x, 0.1, self.place, -8, 7)


class _Observed(nn.Module):
    """A parameter [6, 4], or its cosine, with both signs, in the range that was seen of it, or of each row. (The kernel
    knows float32 only.)"""

    def __init__(self, rows: bool, bent: bool = False) -> None:
        super().__init__()
        self.a, self.rows, self.bent = nn.Parameter(torch.rand(6, 4) + 0.5), rows, bent
        self.on, self.zero_points = nn.Buffer(torch.tensor([1])), nn.Buffer(torch.zeros(6, dtype=torch.int32))
        self.least, self.largest = nn.Buffer(-torch.rand(6)), nn.Buffer(torch.rand(6))
        self.scale = nn.Buffer(torch.rand(6))

    def forward(self) -> Tensor:
        x = self.a.cos() if self.bent else self.a * 2
        x = (x[..., None] * torch.tensor([-1.0, 1.0])).float()
        least, largest, scale, zero_points = (
            self.least.float(),
            self.largest.float(),
            self.scale.float(),
            self.zero_points * 1,
        )
        if not self.rows:
            least, largest, scale, zero_points = torch.zeros(1), torch.ones(1), torch.ones(1), zero_points.new_zeros(1)
        axis = 0 if self.rows else -1
        return torch.fused_moving_avg_obs_fake_quant(
            x, self.on, self.on, least, largest, scale, zero_points, 0.01, 0, 255, axis, self.rows, False
        )


sample(one_grid)(_Rounded)
sample(one_grid)(lambda: _Rounded(place=3))
sample(one_grid)(lambda: _Rounded(bent=True))
sample(one_grid)(lambda: _Rounded(how="tensors"))
sample(own_grids)(lambda: _Rounded(how="columns"))
sample(own_grids)(lambda: _Rounded(how="columns", bent=True))
sample(own_grids)(lambda: _Rounded(how="columns with real zeros"))
for _bent in (False, True):
    sample(learnt_grid)(lambda bent=_bent: _Rounded(how="learnt", bent=bent))
    sample(learnt_grids)(lambda bent=_bent: _Rounded(how="learnt columns", bent=bent))
    sample(observed)(lambda bent=_bent: _Observed(rows=True, bent=bent))
sample(observed)(lambda: _Observed(rows=False))


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


@mutant(own_grids)
def _real_zeros_are_on_the_grid(call: Call) -> list[Label]:
    first, mask = own_grids(call)
    return [call.label(first.axes, call["self"].zero), mask]


@mutant(learnt_grid)
@mutant(learnt_grids)
def _learnt_gives_zero(call: Call) -> Label:
    right = (learnt_grids if "axis" in call.arguments else learnt_grid)(call)
    return call.label(right.axes, [True] * 2)


@mutant(learnt_grid)
def _learnt_is_untied(call: Call) -> Label:
    return call.label([call.fresh(size) for size in call.shapes[0]])


@mutant(learnt_grids)
def _learnt_grids_stay(call: Call) -> Label:
    return call.label(call["self"].axes)


@mutant(observed)
def _ranges_stay(call: Call) -> list[Label]:
    x = call["self"]
    for axis, zero in zip(x.axes, x.zero, strict=True):
        if not zero:
            call.inexact(axis, "")
    return [call.label(x.axes, x.zero), call.label(x.axes, output=1)]


@mutant(observed)
def _anything_is_in_the_range(call: Call) -> list[Label]:
    x, dim = call["self"], call["ch_axis"]
    for name in ("running_min", "running_max", "scale", "zero_point") if call["per_row_fake_quant"] else ():
        call.equate(x.axes[dim], call[name].axes[0])
    return [call.label(x.axes), call.label(x.axes, output=1)]


@mutant(observed)
def _in_range_means_zero(call: Call) -> list[Label]:
    first, mask = observed(call)
    return [call.label(first.axes, [True] * 3), mask]
