"""Where something is along a dimension: the largest entries, the order of all of them.

Indices that an operator returns are positions along the dimension it looked through (`Label.places`). When some of that
dimension leave, it would choose among the others: that is inexact, but what is looked up by the indices can follow.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from niwaki.core.numbers import Combination
from niwaki.rules.reductions import average, over, reduced, reduced_dims, summary
from niwaki.rules.registry import Call, Label, mutant, nonnegative, rule, sample

aten = torch.ops.aten


@nonnegative("self")
@rule(
    aten.kthvalue.default,
    aten.max.dim,
    aten.median.dim,
    aten.min.dim,
    aten.mode.default,
    aten.nanmedian.dim,
)
def found(call: Call) -> list[Label]:
    """As `average`, and where along the dimension it was, which among several zeros may be one that is removed."""
    return [average(call), _place(call, output=1)]


@rule(aten.argmax.default, aten.argmin.default)
def sought(call: Call) -> Label:
    """The place of the largest entry, or of the smallest."""
    x: Label = call["self"]
    if call["dim"] is None:
        return summary(call)
    for dim in reduced_dims(call, len(x.axes)):
        call.inexact(x.axes[dim], f"{call.operator} depends on all entries along this dimension")
    return _place(call, output=0)


def _place(call: Call, output: int) -> Label:
    """Positions along the one dimension that is reduced."""
    x: Label = call["self"]
    made = reduced(call, (False,) * len(x.axes), output)
    return replace(made, places=x.axes[min(reduced_dims(call, len(x.axes)))] if x.axes else None)


@nonnegative("self")
@rule(aten.sort.default, aten.sort.stable, aten.topk.default)
def ranked(call: Call) -> list[Label]:
    """Positions along ``dim`` are exchanged by value."""
    x: Label = call["self"]
    dim = call["dim"] % max(len(x.axes), 1)
    why = f"{call.operator} arranges this dimension by value; without one of them it would choose others"
    if x.axes and call.operator is aten.topk.default and call["k"] < x.axes[dim].size:
        call.inexact(x.axes[dim], why)
        if x.axes[dim].free:
            enough = Combination(">=", call.count("self", dim), call.number(call["k"]), 1)
            call.size_is(enough, call.fixed(1), "whether there are enough to choose from")
    elif x.axes:
        call.pin(x.axes[dim], why)
    axes = [
        call.fixed(size, "it is arranged by value") if i == dim else axis
        for i, (axis, size) in enumerate(zip(x.axes, call.shapes[0], strict=True))
    ]
    places = call.places(x)  # sorted, they are the same numbers
    values, indices = (call.label(axes, output=output) for output in (0, 1))
    return [replace(values, places=places), replace(indices, places=x.axes[dim] if x.axes else None)]


class _Sought(nn.Module):
    """The largest along dimension 1 of [3, 4, 5], by itself or as what it stands for in a table of four; and a product
    that may shrink in any case."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.arange(4.0) - 5)
        self.c = nn.Parameter(torch.randn(4)) if table else None
        self.d = nn.Parameter(torch.randn(6, 5))

    def forward(self) -> tuple[Tensor, Tensor]:
        place = (self.a + self.b[:, None]).argmax(1)
        return place if self.c is None else self.c[place], torch.relu(self.d) @ self.d.detach().mT


class _SoughtAmongZeros(nn.Module):
    """The largest along dimension 1 of what is not negative in [3, 4, 5], its value, or what it stands for in a table;
    and a product that may shrink in any case."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(4, 5))
        self.c, self.d, self.table = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(6, 5)), table

    def forward(self) -> tuple[Tensor, Tensor]:
        value, place = (self.a * self.b).relu().max(1)
        return self.c[place] if self.table else value, torch.relu(self.d) @ self.d.detach().mT


sample(found)(lambda: _SoughtAmongZeros(table=True))
sample(found)(lambda: _SoughtAmongZeros(table=False))
sample(sought)(lambda: _Sought(table=False))
sample(sought)(lambda: _Sought(table=True))
for _bent in (False, True):
    sample(found)(over(lambda x: x.max(0)[0], _bent))
    sample(ranked)(over(lambda x: x.sort(dim=1)[0], _bent))
    sample(ranked)(over(lambda x: x.topk(3, dim=2)[0], _bent))


@mutant(found)
def _largest_as_a_sum(call: Call) -> list[Label]:
    return [reduced(call, call["self"].zero), reduced(call, call["self"].zero, output=1)]


@mutant(found)
def _largest_is_zero(call: Call) -> list[Label]:
    return [call.label(x.axes, [True] * len(x.axes), output=i) for i, x in enumerate(found(call))]


@mutant(found)
def _place_among_zeros_follows(call: Call) -> list[Label]:
    x: Label = call["self"]
    for dim in () if x.nonnegative else reduced_dims(call, len(x.axes)):
        call.inexact(x.axes[dim], "")
    return [reduced(call, x.zero), _place(call, output=1)]


@mutant(sought)
def _sought_among_what_is_left(call: Call) -> Label:
    return reduced(call, (False,) * len(call["self"].axes))


@mutant(sought)
def _place_of_zeros_is_zero(call: Call) -> Label:
    made = sought(call)
    return call.label(made.axes, [True] * len(made.axes))


@mutant(ranked)
def _sorted_as_they_were(call: Call) -> list[Label]:
    return [call.label(call["self"].axes, output=output) for output in (0, 1)]


@mutant(ranked)
def _sorted_along_another_dimension(call: Call) -> list[Label]:
    call.pin(call["self"].axes[call["dim"] - 1], "")
    return [call.label(call["self"].axes, output=output) for output in (0, 1)]
