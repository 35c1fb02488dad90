"""Writing by index and scattering: positions of a dimension are written by number, the others take values position by
position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.rules.indexing_read import by_index
from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten
_WRITTEN = "it is written by index"


@rule(aten._index_put_impl_.default, aten._unsafe_index_put.default, aten.index_put.default, aten.index_put_.default)
def index_put(call: Call) -> Label:
    """Dimensions with an index tensor are written by number, the others take the values position by position."""
    x, values = call["self"], call["values"]
    written, lead = by_index(call, x, _WRITTEN)
    rest = [dim for dim in range(len(x.axes)) if dim not in written]
    new = max(1 if given.dtype is torch.bool else len(given.axes) for given in call["indices"] if given is not None)
    order = [*(dim for dim in rest if dim < lead), *[None] * new, *(dim for dim in rest if dim >= lead)]
    zero = [False] * len(x.axes)
    for back in range(1, min(len(order), len(values.axes)) + 1):
        dim, theirs = order[-back], values.axes[-back]
        if dim is None:
            call.pin(theirs, _WRITTEN)
        elif theirs.size == x.axes[dim].size:
            call.equate(x.axes[dim], theirs)
            zero[dim] = x.zero[dim] and values.zero[-back]
    return call.label(x.axes, zero)


@rule(
    aten.scatter.reduce,
    aten.scatter.src,
    aten.scatter.value,
    aten.scatter.value_reduce,
    aten.scatter_.reduce,
    aten.scatter_.src,
    aten.scatter_.value,
    aten.scatter_.value_reduce,
    aten.scatter_add.default,
    aten.scatter_add_.default,
)
def scatter(call: Call) -> Label:
    """Along ``dim`` by number; along the others position by position, as far as the index reaches."""
    x, indices, source, along = (
        call["self"],
        call["index"],
        call.arguments.get("src"),
        call["dim"] % len(call["self"].axes),
    )
    zero = []
    for dim, (ours, theirs) in enumerate(zip(x.axes, indices.axes, strict=True)):
        given = None if source is None else source.axes[dim].take(slice(None, theirs.size))
        if dim == along:
            call.pin(ours, _WRITTEN)
            call.pin(theirs, _WRITTEN)
        else:
            call.equate(ours.take(slice(None, theirs.size)), theirs)
        if given is not None:
            call.equate(theirs, given)
        zero.append(dim != along and x.zero[dim] and (call["value"] == 0 if source is None else source.zero[dim]))
    return call.label(x.axes, zero)


_ROWS, _FIVE = torch.tensor([0, 3, 1]), torch.arange(5)


def _put(a: Tensor, where: Any, b: Tensor) -> Tensor:
    a[where] = b
    return a


class _Chosen(nn.Module):
    """A function of parameters [5, 4, 6] and [5, 3, 6] that returns as many dimensions."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Parameter(torch.randn(5, 4, 6)), nn.Parameter(torch.randn(5, 3, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a, self.b)


class _Written(nn.Module):
    """A function of parameters [4, 6] and [3, 6], and a product with a third, which may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (3, 6), (6, 5)))
        self.function = function

    def forward(self) -> Tensor:
        return self.function(self.a, self.b) @ self.c


sample(index_put)(lambda: _Written(lambda a, b: (a * 2).index_put_((torch.tensor([0, 3, 1]),), b.sigmoid())))
sample(scatter)(lambda: _Written(lambda a, b: a.clone().scatter_add_(0, torch.arange(3)[:, None].expand(3, 6), b)))
sample(scatter)(lambda: _Written(lambda a, b: a.scatter(0, torch.arange(3)[:, None].expand(3, 6), b)))
sample(index_put)(lambda: _Written(lambda a, b: a.sigmoid().index_put_((torch.tensor([0, 3, 1]),), b)))
sample(index_put)(lambda: _Written(lambda a, b: (a * 2).index_put((torch.tensor([0, 3, 1]),), b, accumulate=True)))
sample(index_put)(lambda: _Written(lambda a, b: _put(a * 2, torch.tensor([True, True, False, True]), b * 2)))
sample(index_put)(lambda: _Written(lambda a, b: (a * 2).index_put_((torch.tensor([0, 3]),), b[0, :1].sigmoid())))
sample(index_put)(lambda: _Chosen(lambda a, b: _put(a * 2, (slice(None), _ROWS), b * 2)))
sample(index_put)(
    lambda: _Chosen(
        lambda a, b: _put(a.permute(0, 2, 1) * 2, (_FIVE, slice(None), _FIVE[[0, 3, 1, 2, 0]]), b[:, 0] * 2)
    )
)
sample(scatter)(lambda: _Written(lambda a, b: (a * 2).scatter(0, torch.arange(3)[:, None].expand_as(b), b * 2)))
sample(scatter)(lambda: _Written(lambda a, b: a.scatter_add(0, torch.arange(3)[:, None].expand_as(b), b)))
sample(scatter)(lambda: _Written(lambda a, b: (a * 2).scatter(0, torch.zeros_like(b, dtype=torch.int64), 0.0)))
sample(scatter)(lambda: _Written(lambda a, b: (a * 2).scatter_(0, torch.zeros_like(b, dtype=torch.int64), 0.5)))
sample(scatter)(lambda: _Written(lambda a, b: (a * 2).scatter(0, torch.zeros_like(b[:, :4], dtype=torch.int64), b)))
sample(scatter)(lambda: _Written(lambda a, b: (a * 2).scatter(0, (b.abs() > 0).long(), 0.5)))


@mutant(index_put)
@mutant(scatter)
def _written_rows_are_free(call: Call) -> Label:
    x, source = call["self"], call["values" if "values" in call.arguments else "src"]
    call.equate(x.axes[1], source.axes[1])
    call.pin(source.axes[0], "")
    return call.label(x.axes, x.zero)
