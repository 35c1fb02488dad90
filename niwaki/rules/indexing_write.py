"""Follow axes through writing by index: positions of a dimension are written by index or by mask, the others take the
values position by position."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call
from niwaki.rules.indexing_read import by_index
from niwaki.rules.label import Label
from niwaki.rules.pointwise import broadcast
from niwaki.rules.registry import mutant, rule, sample
from niwaki.rules.zeros import mixture

aten = torch.ops.aten
_WRITTEN = "it is written by index"
_BY_NUMBER = "rows of it are written by index"


@mixture()
@rule(aten._index_put_impl_.default, aten._unsafe_index_put.default, aten.index_put.default, aten.index_put_.default)
def index_put(call: Call) -> Label:
    """Dimensions with an index tensor are written by index, the others take the values position by position."""
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


@mixture()
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
    """Along ``dim`` by index; along the others position by position, as far as the index reaches."""
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


@mixture()
@rule(aten.index_copy.default, aten.index_copy_.default)
def index_copy(call: Call) -> Label:
    """Rows are replaced."""
    x, source, along = call["self"], call["source"], call["dim"] % len(call["self"].axes)
    call.pin(call["index"].axes[0], _BY_NUMBER)
    zero = []
    for dim, (ours, theirs) in enumerate(zip(x.axes, source.axes, strict=True)):
        if dim == along:
            call.pin(ours, _BY_NUMBER)
            call.pin(theirs, _BY_NUMBER)
        else:
            call.equate(ours, theirs)
        zero.append(dim != along and x.zero[dim] and source.zero[dim])
    return call.label(x.axes, zero)


@mixture()
@rule(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor, aten.index_fill_.int_Scalar, aten.index_fill_.int_Tensor)
def index_fill(call: Call) -> Label:
    """Rows are filled with one number."""
    x, along = call["self"], call["dim"] % len(call["self"].axes)
    for axis in (x.axes[along], *call["index"].axes):
        call.pin(axis, _BY_NUMBER)
    return call.label(x.axes, [dim != along and call["value"] == 0 and flag for dim, flag in enumerate(x.zero)])


@mixture()
@rule(aten.scatter_reduce.two, aten.scatter_reduce_.two)
def scatter_reduce(call: Call) -> Label:
    """Entries are added to, multiplied by or compared with those that they are written to."""
    x, index, source = call["self"], call["index"], call["src"]
    along, zero = call["dim"] % len(x.axes), []
    for dim, (ours, places, theirs) in enumerate(zip(x.axes, index.axes, source.axes, strict=True)):
        near = theirs.take(slice(None, places.size))
        if dim == along:
            call.pin(ours, _BY_NUMBER)
        else:
            call.equate(ours.take(slice(None, places.size)), places)
        call.equate(near, places)
        zero.append(dim != along and x.zero[dim] and source.zero[dim])
    return call.label(x.axes, zero)


@mixture()
@rule(aten.index_add_.default, aten.index_add.default)
def index_add(call: Call) -> Label:
    """Along ``dim`` rows are added by index; along the others position by position."""
    x, source, dim = call["self"], call["source"], call["dim"] % len(call["self"].axes)
    for axis in (x.axes[dim], source.axes[dim], *call["index"].axes):
        call.pin(axis, "rows are added to it by index")
    for i, (ours, theirs) in enumerate(zip(x.axes, source.axes, strict=True)):
        if i != dim:
            call.equate(ours, theirs)
    zero = [i != dim and x.zero[i] and source.zero[i] for i in range(len(x.axes))]
    return call.label(x.axes, zero)


@mixture()
@rule(aten.masked_scatter.default, aten.masked_scatter_.default)
def masked_scatter(call: Call) -> Label:
    """Where the mask is true, entries are taken from ``source`` in order. If the mask is constant along the last
    dimension, whole rows are taken, and rows may get shorter."""
    x, mask, source = call["self"], call["mask"], call["source"]
    alike = mask.shape[-1:] == (1,) or mask.uniform[-1:] == (True,)
    rows = alike and source.shape[-1:] == x.shape[-1:]
    broadcast(call, [x, mask])
    whole = -1 if rows else None
    for axis in (*x.axes[:whole], *mask.axes[:whole], *source.axes[:whole]):
        call.pin(axis, "entries are chosen by a mask")
    if rows:
        call.equate(x.axes[-1], source.axes[-1])
    return call.label(x.axes, [rows and x.zero[-1] and source.zero[-1] and axis is x.axes[-1] for axis in x.axes])


_ROWS, _TWICE, _FIVE = torch.tensor([0, 3, 1]), torch.tensor([2, 0, 2]), torch.arange(5)


def _put(a: Tensor, where: Any, b: Tensor) -> Tensor:
    a[where] = b
    return a


def _computed(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    return a.cos().index_copy(0, (b.sum(1) > 99).long(), torch.ones(3, 6, dtype=a.dtype))


def _reduced(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    return (a * 2).scatter_reduce(0, rows[:, None].expand(3, b.shape[1]), b * 2, "sum")


def _reduced_in_part(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    return b.cos().scatter_reduce(1, torch.zeros_like(b, dtype=torch.int64), a, "amax")


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


class _Rows(nn.Module):
    """A function of parameters [4, 6] and [3, 6] and three row numbers."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a, self.b, torch.tensor([2, 0, 3]))


class _Merged(nn.Module):
    """Some rows of [4, 6] are replaced by those of another tensor, as image features replace their placeholders."""

    def __init__(self, bent: str = "", rows: bool = True, in_place: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 6))
        self.where = torch.tensor([[True, False, True, True]]).T
        self.bent, self.rows, self.in_place, self.width = bent, rows, in_place, 6

    def forward(self) -> Tensor:
        a, b = (x.sigmoid() if name in self.bent else x * 2 for name, x in (("a", self.a), ("b", self.b)))
        mask = self.where.expand(-1, self.width) if self.rows else torch.ones_like(a) > 0.5
        return a.masked_scatter_(mask, b) if self.in_place else a.masked_scatter(mask, b if self.rows else a.cos())


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
sample(index_copy)(lambda: _Rows(lambda a, b, rows: (a * 2).index_copy(0, rows, b * 2)))
sample(index_copy)(lambda: _Rows(lambda a, b, rows: a.cos().index_copy(0, rows, b)))
sample(index_copy)(lambda: _Rows(lambda a, b, rows: a.index_copy(0, rows, b.cos())))
sample(index_copy)(lambda: _Rows(_computed))
sample(index_fill)(lambda: _Rows(lambda a, b, rows: (a * 2).index_fill(0, rows, 0.0)))
sample(index_fill)(lambda: _Rows(lambda a, b, rows: (a * 2).index_fill(0, rows, 2.0)))
sample(index_fill)(lambda: _Rows(lambda a, b, rows: a.T.cos().index_fill(-1, rows, 0.0)))
sample(scatter_reduce)(lambda: _Rows(_reduced))
sample(scatter_reduce)(lambda: _Rows(_reduced_in_part))
sample(index_add)(lambda: _Written(lambda a, b: (a * 2).index_add_(0, _TWICE, b)))
sample(index_add)(lambda: _Rows(lambda a, b, rows: (a * 2).index_add_(0, _TWICE, b.sigmoid())))
sample(index_add)(lambda: _Rows(lambda a, b, rows: a.sigmoid().index_add(0, _TWICE, b * 2)))
sample(index_add)(lambda: _Rows(lambda a, b, rows: a.t().index_add(-1, _TWICE, b.t(), alpha=2)))
sample(masked_scatter)(_Merged)
sample(masked_scatter)(lambda: _Merged("a"))
sample(masked_scatter)(lambda: _Merged("b"))
sample(masked_scatter)(lambda: _Merged("ab", in_place=True))
sample(masked_scatter)(lambda: _Merged(in_place=True))
sample(masked_scatter)(lambda: _Merged(rows=False))


@mutant(index_put)
@mutant(scatter)
def _written_rows_are_free(call: Call) -> Label:
    x, source = call["self"], call["values" if "values" in call.arguments else "src"]
    call.equate(x.axes[1], source.axes[1])
    call.pin(source.axes[0], "")
    return call.label(x.axes, x.zero)


@mutant(index_copy)
@mutant(index_fill)
@mutant(scatter_reduce)
def _rows_are_free(call: Call) -> Label:
    source = call.arguments.get("source", call.arguments.get("src"))
    if source is not None:
        call.equate(call["self"].axes[1], source.axes[1])
    return call.label(call["self"].axes)


@mutant(index_copy)
@mutant(index_fill)
@mutant(scatter_reduce)
def _keeps_its_zeros(call: Call) -> Label:
    x: Label = call["self"]
    right = {aten.index_copy: index_copy, aten.index_fill: index_fill}.get(call.operator.overloadpacket, scatter_reduce)
    return call.label(right(call).axes, [True] * len(x.axes))


@mutant(index_add)
def _only_the_rows_matter(call: Call) -> Label:
    for x in (call["self"], call["source"]):
        call.pin(x.axes[call["dim"]], "")
    return call.label(call["self"].axes)


@mutant(index_add)
def _sum_is_zero_if_any_is(call: Call) -> Label:
    right = index_add(call)
    pairs = zip(call["self"].zero, call["source"].zero, strict=True)
    return call.label(right.axes, [a or b for a, b in pairs])


@mutant(masked_scatter)
def _any_entry_may_go(call: Call) -> Label:
    call.equate(call["self"].axes[-1], call["source"].axes[-1])
    return call.label(call["self"].axes)


@mutant(masked_scatter)
def _masked_rows_keep_their_zeros(call: Call) -> Label:
    x: Label = call["self"]
    return call.label(x.axes, (False, x.zero[1] or masked_scatter(call).zero[1]))
