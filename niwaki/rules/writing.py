"""Rows that are written, looked up or reduced by number: along one dimension by number, along the others position by
position."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten
_BY_NUMBER = "rows of it are written by number"


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


@rule(aten.index_fill.int_Scalar, aten.index_fill.int_Tensor, aten.index_fill_.int_Scalar, aten.index_fill_.int_Tensor)
def index_fill(call: Call) -> Label:
    """Rows are filled with one number."""
    x, along = call["self"], call["dim"] % len(call["self"].axes)
    for axis in (x.axes[along], *call["index"].axes):
        call.pin(axis, _BY_NUMBER)
    return call.label(x.axes, [dim != along and call["value"] == 0 and flag for dim, flag in enumerate(x.zero)])


@rule(aten.scatter_reduce.two, aten.scatter_reduce_.two)
def scatter_reduce(call: Call) -> Label:
    """Entries are added, multiplied or compared with what is there."""
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


@rule(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(call: Call) -> list[Label]:
    """Rows of ``weight`` by number, summed, averaged or compared by bags."""
    weight, shared = call["weight"], call["per_sample_weights"]
    call.pin(weight.axes[0], "it is looked up by index")
    for given in (call["indices"], call["offsets"], *([shared] if shared is not None else [])):
        call.pin(given.axes[0], "it says what is in the bags")
    call.makes(weight, 1)
    bags = call.fixed(call.shapes[0][0], "there are so many bags")
    first = call.label((bags, weight.axes[1]), (False, weight.zero[1]))
    return [first, *(call.opaque(output) for output in range(1, len(call.shapes)))]


class _Rows(nn.Module):
    """A function of parameters [4, 6] and [3, 6] and three row numbers."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a, self.b, torch.tensor([2, 0, 3]))


class _Bags(nn.Module):
    """Two bags of rows [4, 6]; a product may shrink in any case."""

    def __init__(self, bent: bool = False, weighed: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.w = (
            nn.Parameter(torch.randn(4, 6)),
            nn.Parameter(torch.randn(6, 5)),
            nn.Parameter(torch.rand(3)),
        )
        self.bent, self.weighed = bent, weighed

    def forward(self) -> tuple[Tensor, Tensor]:
        weights = self.w.cos() if self.weighed else None
        rows, starts = torch.tensor([2, 0, 3]), torch.tensor([0, 2])
        made = nn.functional.embedding_bag(
            rows, self.a.cos() if self.bent else self.a, starts, mode="sum", per_sample_weights=weights
        )
        return made, self.b.detach().relu().T @ self.b


def _computed(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    return a.cos().index_copy(0, (b.sum(1) > 99).long(), torch.ones(3, 6, dtype=a.dtype))


def _reduced(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    return (a * 2).scatter_reduce(0, rows[:, None].expand(3, b.shape[1]), b * 2, "sum")


def _reduced_in_part(a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    return b.cos().scatter_reduce(1, torch.zeros_like(b, dtype=torch.int64), a, "amax")


sample(index_copy)(lambda: _Rows(lambda a, b, rows: (a * 2).index_copy(0, rows, b * 2)))
sample(index_copy)(lambda: _Rows(lambda a, b, rows: a.cos().index_copy(0, rows, b)))
sample(index_copy)(lambda: _Rows(lambda a, b, rows: a.index_copy(0, rows, b.cos())))
sample(index_copy)(lambda: _Rows(_computed))
sample(index_fill)(lambda: _Rows(lambda a, b, rows: (a * 2).index_fill(0, rows, 0.0)))
sample(index_fill)(lambda: _Rows(lambda a, b, rows: (a * 2).index_fill(0, rows, 2.0)))
sample(index_fill)(lambda: _Rows(lambda a, b, rows: a.T.cos().index_fill(-1, rows, 0.0)))
sample(scatter_reduce)(lambda: _Rows(_reduced))
sample(scatter_reduce)(lambda: _Rows(_reduced_in_part))
sample(embedding_bag)(lambda: _Bags())
sample(embedding_bag)(lambda: _Bags(bent=True))
sample(embedding_bag)(lambda: _Bags(weighed=True))


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


@mutant(embedding_bag)
def _any_row_may_go(call: Call) -> list[Label]:
    bags = call.fixed(call.shapes[0][0])
    return [call.label((bags, call["weight"].axes[1])), *(call.opaque(i) for i in range(1, len(call.shapes)))]


@mutant(embedding_bag)
def _bags_are_zero(call: Call) -> list[Label]:
    right = embedding_bag(call)
    return [call.label(right[0].axes, (True, True)), *right[1:]]
