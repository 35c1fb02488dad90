"""Slicing, selecting, looking up."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.core.numbers import Literal
from niwaki.rules.axis import Axis
from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten
_LOOKED_UP = "it is looked up by index"


@rule(aten.slice.Tensor)
def sliced(call: Call) -> Label:
    """Positions ``start:end:step``. A bound is a count of the positions before it."""
    x, dim, step = call["self"], call["dim"] % len(call["self"].axes), call["step"]
    axis = x.axes[dim]
    start, end = _bound(call["start"], 0, axis.size), _bound(call["end"], axis.size, axis.size)
    if step != 1:
        call.pin(axis, "every so many positions of it are taken")
    for bound in (start, end):
        if 0 < bound < axis.size:
            call.size_is(call.number(bound), axis.take(slice(None, bound)), "the bound of a slice")
        elif bound == axis.size and call["end"] == bound:
            told = call.number(bound)
            if not isinstance(told, Literal):  # a literal beyond the end takes everything, before and after a cut
                call.size_is(told, axis, "the bound of a slice")
    axes = list(x.axes)
    axes[dim] = axis.take(slice(start, end, step))
    return call.label(axes, x.zero, x.weight)


def _bound(given: int | None, default: int, size: int) -> int:
    if given is None:
        return default
    return min(max(given + size if given < 0 else given, 0), size)


@rule(aten.select.int)
def select(call: Call) -> Label:
    """One position of ``dim``."""
    x, dim = call["self"], call["dim"] % len(call["self"].axes)
    call.pin(x.axes[dim], "one position of it is selected by number")
    rest = [i for i in range(len(x.axes)) if i != dim]
    return call.label([x.axes[i] for i in rest], [x.zero[i] for i in rest], x.weight)


@rule(aten.embedding.default)
def embedding(call: Call) -> Label:
    """Rows of ``weight`` by number."""
    weight, indices = call["weight"], call["indices"]
    call.pin(weight.axes[0], _LOOKED_UP)
    call.makes(weight, 1)
    return call.label((*indices.axes, weight.axes[1]), (*(False for _ in indices.axes), weight.zero[1]))


@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(call: Call) -> Label:
    """Dimensions with an index tensor are looked up, the others go on."""
    x: Label = call["self"]
    given = dict(enumerate(call["indices"]))
    looked_up = []
    for dim, tensor in given.items():
        if tensor is not None:
            looked_up += range(dim, dim + (len(tensor.axes) if tensor.dtype is torch.bool else 1))
            for axis in tensor.axes:
                call.pin(axis, "it is an index")
    for dim in looked_up:
        call.pin(x.axes[dim], _LOOKED_UP)
    rest = [dim for dim in range(len(x.axes)) if dim not in looked_up]
    new = len(call.shapes[0]) - len(rest)
    adjacent = looked_up == list(range(looked_up[0], looked_up[0] + len(looked_up)))
    lead = looked_up[0] if adjacent else 0
    kept = [dim for dim in rest if dim < lead], [dim for dim in rest if dim >= lead]
    made = [call.fixed(size, _LOOKED_UP) for size in call.shapes[0][len(kept[0]) : len(kept[0]) + new]]
    axes = [*(x.axes[dim] for dim in kept[0]), *made, *(x.axes[dim] for dim in kept[1])]
    zero = [*(x.zero[dim] for dim in kept[0]), *(False for _ in made), *(x.zero[dim] for dim in kept[1])]
    return call.label(axes, zero, x.weight)


@rule(aten.index_select.default)
def index_select(call: Call) -> Label:
    """Positions of ``dim`` by number."""
    x, dim = call["self"], call["dim"] % max(len(call["self"].axes), 1)
    call.pin(x.axes[dim], _LOOKED_UP)
    axes = list(x.axes)
    axes[dim] = call.fixed(call.shapes[0][dim], _LOOKED_UP)
    return call.label(axes, x.zero, x.weight)


@rule(aten.gather.default)
def gather(call: Call) -> Label:
    """Along ``dim`` by number; along the others position by position, as far as the index reaches."""
    x, indices, dim = call["self"], call["index"], call["dim"]
    axes: list[Axis] = []
    for i, (ours, theirs) in enumerate(zip(x.axes, indices.axes, strict=True)):
        if i == dim % len(x.axes):
            call.pin(ours, _LOOKED_UP)
            axes.append(theirs)
        else:
            near = ours.take(slice(None, theirs.size))
            call.equate(near, theirs)
            axes.append(near)
    return call.label(axes)


@rule(aten.index_put_.default, aten.index_put.default)
def index_put(call: Call) -> Label:
    """Dimensions with an index tensor are written by number; niwaki follows none of the others."""
    x, values = call["self"], call["values"]
    for tensor in (x, values, *(given for given in call["indices"] if given is not None)):
        for axis in tensor.axes:
            call.pin(axis, "it is written by index")
    return call.label(x.axes)


@rule(aten.scatter.src, aten.scatter.value, aten.scatter_.src, aten.scatter_.value, aten.scatter_add.default)
def scatter(call: Call) -> Label:
    """As `index_put`."""
    for name in ("self", "index", "src"):
        given = call.arguments.get(name)
        if isinstance(given, Label):
            for axis in given.axes:
                call.pin(axis, "it is written by index")
    return call.label(call["self"].axes)


@rule(aten.tril.default, aten.triu.default)
def triangle(call: Call) -> Label:
    """The last two dimensions are compared by number."""
    x: Label = call["self"]
    for axis in x.axes[-2:]:
        call.pin(axis, "a triangle of it is taken")
    return call.label(x.axes, x.zero)


class _Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.n = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(2, 5)), 4

    def forward(self) -> torch.Tensor:
        return torch.cat([self.a[self.n :] + self.b, self.a[: self.n] * 2])


class _SlicedByNumber(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(6, 5))

    def forward(self) -> torch.Tensor:
        return self.a[1:3, ::2] + 1


class _By(nn.Module):
    """Applies a function to parameters [4, 6] and [3, 6] and an index buffer."""

    def __init__(self, function: object) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 6)), function

    def forward(self) -> torch.Tensor:
        return self.function(self.a, self.b, torch.tensor([2, 0, 2]))


sample(sliced)(_Sliced)
sample(sliced)(_SlicedByNumber)
sample(select)(lambda: _By(lambda a, b, i: a[1] * b))
sample(embedding)(lambda: _By(lambda a, b, i: torch.nn.functional.embedding(i, a) + b))
sample(index)(lambda: _By(lambda a, b, i: a[i] * b))
sample(index)(lambda: _By(lambda a, b, i: a[:, i].sigmoid()))
sample(index_select)(lambda: _By(lambda a, b, i: a.index_select(0, i) * b))
sample(gather)(lambda: _By(lambda a, b, i: a.gather(0, i[:, None].expand(3, 6)) * b))
sample(index_put)(lambda: _By(lambda a, b, i: a.clone().index_put_((torch.tensor([0, 3, 1]),), b)))
sample(scatter)(lambda: _By(lambda a, b, i: a.scatter(0, torch.arange(3)[:, None].expand(3, 6), b)))
sample(triangle)(lambda: _By(lambda a, b, i: a.tril()))


@mutant(sliced)
def _bounds_do_not_matter(call: Call) -> Label:
    axes = list(call["self"].axes)
    stop = call["end"] if call["end"] is not None else axes[call["dim"]].size
    axes[call["dim"]] = axes[call["dim"]].take(slice(call["start"], stop, call["step"]))
    call.sizes([n.value for n in call.python.numbers])
    return call.label(axes)


@mutant(select)
@mutant(index)
@mutant(index_select)
@mutant(gather)
@mutant(embedding)
def _rows_are_free(call: Call) -> Label:
    x: Label = call["self"] if "self" in call.arguments else call["weight"]
    axes = list(x.axes[len(x.axes) - len(call.shapes[0]) :])
    return call.label([axis if axis.size == size else call.fresh(size) for axis, size in zip(axes, call.shapes[0])])


@mutant(index_put)
@mutant(scatter)
@mutant(triangle)
def _written_freely(call: Call) -> Label:
    return call.label(call["self"].axes)
