"""Follow axes through sorting and counting by value: sort, topk, unique, searchsorted, bincount.

Indices that a sort returns are positions along the sorted dimension (`Label.index_of`). When positions of it are
removed, others would be chosen: that is inexact, but tensors read by these indices can follow.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from niwaki.core.numbers import Combination, Literal
from niwaki.rules.call import Call
from niwaki.rules.indexing_read import BesideProduct, by_value
from niwaki.rules.label import Label
from niwaki.rules.reductions import over
from niwaki.rules.registry import mutant, nonnegative, rule, sample

aten = torch.ops.aten

rule(aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default)(by_value)


@nonnegative("self")
@rule(aten.sort.default, aten.sort.stable, aten.topk.default)
def sort(call: Call) -> list[Label]:
    """Positions along ``dim`` are ordered by value."""
    x: Label = call["self"]
    dim = call["dim"] % max(len(x.axes), 1)
    why = f"{call.operator} orders this dimension by value, and would choose others without one of its positions"
    if x.axes and call.operator is aten.topk.default and call["k"] < x.axes[dim].size:
        call.inexact(x.axes[dim], why)
        if x.axes[dim].free:
            enough = Combination(">=", call.size_of("self", dim), call.int_expr(call["k"]), 1)
            call.size_is(enough, call.fixed(1), "whether enough entries are left to choose from")
    elif x.axes:
        call.pin(x.axes[dim], why)
    axes = [
        call.fixed(size, "it is ordered by value") if i == dim else axis
        for i, (axis, size) in enumerate(zip(x.axes, call.shapes[0], strict=True))
    ]
    indexed = call.index_of(x)  # sorted, they are the same numbers
    values, indices = (call.label(axes, output=output) for output in (0, 1))
    return [replace(values, index_of=indexed), replace(indices, index_of=x.axes[dim] if x.axes else None)]


@rule(aten.bucketize.Tensor, aten.isin.Tensor_Tensor)
def bucketize(call: Call) -> Label:
    """For each entry, its position among the sorted entries of another tensor."""
    names = ("elements", "test_elements") if "elements" in call.arguments else ("self", "boundaries")
    x, among = call[names[0]], call[names[1]]
    for axis in among.axes:
        call.pin(axis, "others are sought among its entries")
    return call.label(x.axes)


@rule(aten.searchsorted.Tensor)
def searchsorted(call: Call) -> Label:
    """As `bucketize`, row by row."""
    x, among = call["self"], call["sorted_sequence"]
    call.pin(among.axes[-1], "others are sought among its entries")
    for ours, theirs in zip(x.axes[:-1], among.axes[:-1], strict=False):
        call.equate(ours, theirs)
    return call.label(x.axes)


@rule(aten.histc.default, aten.bincount.default)
def histogram(call: Call) -> Label:
    """The number of entries of each value; of indices on an axis, the number of each index."""
    x = call["self"]
    for axis in x.axes:
        call.pin(axis, "its entries are counted")
    bins = "bins" if "bins" in call.arguments else "minlength"
    size = call[bins]
    values = call.arguments.get("min", 0), call.arguments.get("max", size - 1)
    every = x.index_of is not None and size == x.index_of.size and values == (0, size - 1)
    indexed = call.index_of(x) if every and call.arguments.get("weights") is None else None
    if indexed is None:
        return call.opaque(0, "its size is the number of values that are counted")
    call.size_is(call.int_expr(size), indexed, f"the number of {bins}")
    if bins == "bins":
        largest = call.int_expr(size - 1)
        call.size_is(Combination("+", largest, Literal(1), size), indexed, "one more than the largest value")
    return call.label([indexed])


def _sought(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.bucketize(b, torch.sort(c.cos())[0]) * 1.0 + b


def _sought_by_row(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.searchsorted(a, b) * 1.0


def _known(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.isin(b.relu().ceil(), (-99 * c.abs()).exp().round()) * 1.0 + b  # a zero is a one, the rest are zeros


class _Counted(nn.Module):
    """How many of the numbers [6] made from parameters [4, 6] are 0, 1 and 2."""

    def __init__(self, count: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.c, self.count = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 5)), count

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.count(self.a.abs().sum(0).clamp(max=2.4)), self.a.detach()[:, :2] @ self.c[:2]


class _SortedRows(nn.Module):
    """How often each of six is among the three largest of a row [4, 6]; weighs rows [6, 5], which may shrink."""

    def __init__(self, last: int, minlength: bool = False) -> None:
        super().__init__()
        self.a, self.c = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 5))
        self.bins, self.last, self.minlength = 6, last, minlength

    def forward(self) -> tuple[Tensor, Tensor]:
        chosen = self.a.topk(3, dim=1)[1].reshape(-1)
        if self.minlength:
            counted = chosen.bincount(minlength=self.bins).double()
        else:
            counted = chosen.double().histc(self.bins, 0, self.last)
        if int.__eq__(self.last, 5) and int.__lt__(self.bins, 6):  # read where no trace sees it
            raise ValueError("the largest value has not followed")
        return counted @ self.c, torch.relu(self.c.detach()[:2])


for _bent in (False, True):
    sample(sort)(over(lambda x: x.sort(dim=1)[0], _bent))
    sample(sort)(over(lambda x: x.topk(3, dim=2)[0], _bent))
sample(by_value)(lambda: BesideProduct(lambda a, b, c: torch.unique(c.cos(), return_inverse=True)[1] + c))
sample(bucketize)(lambda: BesideProduct(_sought))
sample(bucketize)(lambda: BesideProduct(_known))
sample(searchsorted)(lambda: BesideProduct(_sought_by_row))
sample(histogram)(lambda: _Counted(lambda x: x.histc(3, 0.0, 2.4)))
sample(histogram)(lambda: _Counted(lambda x: x.long().bincount(minlength=3)))
sample(histogram)(lambda: _SortedRows(last=5))
sample(histogram)(lambda: _SortedRows(last=6))
sample(histogram)(lambda: _SortedRows(last=6, minlength=True))


@mutant(sort)
def _sorted_as_they_were(call: Call) -> list[Label]:
    return [call.label(call["self"].axes, output=output) for output in (0, 1)]


@mutant(sort)
def _sorted_along_another_dimension(call: Call) -> list[Label]:
    call.pin(call["self"].axes[call["dim"] - 1], "")
    return [call.label(call["self"].axes, output=output) for output in (0, 1)]


@mutant(bucketize)
def _boundaries_are_free(call: Call) -> Label:
    return call.label(call["self" if "self" in call.arguments else "elements"].axes)


@mutant(bucketize)
def _places_are_zero(call: Call) -> Label:
    axes = bucketize(call).axes
    return call.label(axes, [True] * len(axes))


@mutant(searchsorted)
def _rows_are_free(call: Call) -> Label:
    return call.label(call["self"].axes)


@mutant(histogram)
def _zeros_do_not_count(call: Call) -> Label:
    return call.opaque(0)
