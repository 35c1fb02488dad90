"""Follow axes through patches, windows and sampled positions of images: channel by channel."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.axis import merge
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample

aten = torch.ops.aten
_PATCHES = "patches are cut out of this dimension"
_PLACES = "positions of it are sampled"


@nonnegative("self")
@homogeneous("self")
@rule(aten.im2col.default)
def unfold(call: Call) -> Label:
    """[.., C, H, W] becomes [.., (C, position in the patch), patch]."""
    x: Label = call["self"]
    *lead, channels = x.axes[:-2]
    for axis in x.axes[-2:]:
        call.pin(axis, _PATCHES)
    rows, patches = call.shapes[0][-2:]
    made = merge((channels, call.fixed(rows // channels.size, _PATCHES)))
    return call.label((*lead, made, call.fixed(patches, _PATCHES)), (*x.zero[:-2], False))


@nonnegative("self")
@homogeneous("self")
@rule(aten.col2im.default)
def fold(call: Call) -> Label:
    """The reverse of `unfold`; overlapping patches are added up."""
    x: Label = call["self"]
    *lead, rows, patches = x.axes
    channels = call.shapes[0][-3]
    made, places = call.split(rows, (channels, rows.size // channels))
    for axis in (places, patches):
        call.pin(axis, _PATCHES)
    image = [call.fixed(size, _PATCHES) for size in call.shapes[0][-2:]]
    return call.label((*lead, made, *image), (*x.zero[:-1], False, False))


@nonnegative("self")
@homogeneous("self")
@rule(aten.unfold.default)
def windows(call: Call) -> Label:
    """Windows along one dimension; their entries become a new last dimension."""
    x: Label = call["self"]
    if not x.axes:
        return call.opaque(0)
    dim = call["dimension"] % len(x.axes)
    call.pin(x.axes[dim], _PATCHES)
    axes = [call.fixed(call.shapes[0][i], _PATCHES) if i == dim else axis for i, axis in enumerate(x.axes)]
    zero = [i != dim and flag for i, flag in enumerate(x.zero)]
    return call.label((*axes, call.fixed(call["size"], _PATCHES)), (*zero, False))


@homogeneous("input")
@rule(aten.grid_sampler_2d.default, aten.grid_sampler_3d.default)
def grid_sample(call: Call) -> Label:
    """Features [N, C, *image] and places [N, *made, coordinate] give [N, C, *made]."""
    x, grid = call["input"], call["grid"]
    for axis in (*x.axes[2:], grid.axes[-1]):
        call.pin(axis, _PLACES)
    call.equate(x.axes[0], grid.axes[0])
    return call.label((*x.axes[:2], *grid.axes[1:-1]), (False, x.zero[1], *(False for _ in grid.axes[1:-1])))


@rule(aten.affine_grid_generator.default)
def affine_grid(call: Call) -> Label:
    """Matrices [N, 2, 3] give places [N, H, W, 2] for an image of a given size, of which the channels are ignored."""
    theta: Label = call["theta"]
    for axis in theta.axes[1:]:
        call.pin(axis, _PLACES)
    given = call["size"]
    expressions = call.size_exprs(given)
    call.size_is(expressions[0], theta.axes[0], "the number of images")
    made = [call.fixed(size, _PLACES) for size in call.shapes[0][1:]]
    for expression, axis in zip(expressions[2:], made, strict=False):
        call.size_is(expression, axis, "the size of an image")
    return call.label((theta.axes[0], *made))


class _Placed(nn.Module):
    """Places for two images as large as a parameter [2, 3, 4, 5]; the images may be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a, self.theta = 2, nn.Parameter(torch.randn(2, 3, 4, 5)), nn.Parameter(torch.randn(2, 2, 3))

    def forward(self) -> tuple[Tensor, Tensor]:
        x = self.a * 2
        size = torch.Size((self.n, *x.shape[1:]))
        return torch.nn.functional.affine_grid(self.theta, list(size), align_corners=False), x


class _Image(nn.Module):
    """A function of a parameter [2, 3, 6, 6] whose channels are scaled, or bent away from zero, and of [2, 4, 4, 2]."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], bent: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 3, 6, 6)), nn.Parameter(torch.randn(3, 1, 1))
        self.grid, self.function, self.bent = nn.Parameter(torch.rand(2, 4, 4, 2) - 0.5), function, bent

    def forward(self) -> Tensor:
        x = self.a * self.b
        return self.function(x.sigmoid() if self.bent else x, self.grid)


class _Patches(nn.Module):
    """Twelve rows are three channels of two by two places."""

    def __init__(self, bent: bool = False) -> None:
        super().__init__()
        self.a, self.bent = nn.Parameter(torch.randn(2, 12, 9)), bent

    def forward(self) -> Tensor:
        return torch.nn.functional.fold(self.a.sigmoid() if self.bent else self.a, (6, 6), 2, stride=2)


def _patches(x: Tensor, grid: Tensor) -> Tensor:
    return torch.nn.functional.unfold(x, 3, padding=1)


def _windows(x: Tensor, grid: Tensor) -> Tensor:
    return x.unfold(2, 3, 2)


def _sampled(x: Tensor, grid: Tensor) -> Tensor:
    return torch.nn.functional.grid_sample(x, grid, align_corners=False)


for _bent in (False, True):
    sample(unfold)(lambda bent=_bent: _Image(_patches, bent))
    sample(windows)(lambda bent=_bent: _Image(_windows, bent))
    sample(grid_sample)(lambda bent=_bent: _Image(_sampled, bent))
    sample(fold)(lambda bent=_bent: _Patches(bent))


sample(affine_grid)(_Placed)


@mutant(affine_grid)
def _any_number_of_images(call: Call) -> Label:
    call.size_exprs(call["size"])
    return call.label([call.fresh(2), *(call.fixed(size) for size in call.shapes[0][1:])])


@mutant(affine_grid)
def _matrices_may_shrink(call: Call) -> Label:
    theta = call["theta"]
    call.size_is(call.size_exprs(call["size"])[0], theta.axes[0], "")
    return call.label((theta.axes[0], *(call.fixed(size) for size in call.shapes[0][1:])))


@mutant(unfold)
def _places_come_first(call: Call) -> Label:
    x: Label = call["self"]
    for axis in x.axes[-2:]:
        call.pin(axis, "")
    rows = merge((call.fixed(call.shapes[0][-2] // x.shape[-3]), x.axes[-3]))
    return call.label((x.axes[0], rows, call.fixed(call.shapes[0][-1])))


@mutant(fold)
def _channels_come_last(call: Call) -> Label:
    x: Label = call["self"]
    places, made = call.split(x.axes[1], (x.shape[1] // call.shapes[0][1], call.shapes[0][1]))
    for axis in (places, x.axes[2]):
        call.pin(axis, "")
    return call.label((x.axes[0], made, *(call.fixed(size) for size in call.shapes[0][2:])))


@mutant(windows)
def _windows_are_free(call: Call) -> Label:
    x, dim = call["self"], call["dimension"]
    axes = [call.fixed(call.shapes[0][i]) if i == dim else axis for i, axis in enumerate(x.axes)]
    return call.label((*axes, call.fixed(call["size"])))


@mutant(grid_sample)
def _image_is_free(call: Call) -> Label:
    x, grid = call["input"], call["grid"]
    call.equate(x.axes[0], grid.axes[0])
    return call.label((*x.axes[:2], *grid.axes[1:-1]))


def _zeros_of(right: Callable[[Call], Label]) -> Callable[[Call], Label]:
    def claims_zeros(call: Call) -> Label:
        axes = right(call).axes
        return call.label(axes, [True] * len(axes))

    return claims_zeros


for _right in (unfold, fold, windows, grid_sample):
    mutant(_right)(_zeros_of(_right))
