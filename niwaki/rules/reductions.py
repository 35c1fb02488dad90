"""Follow axes through sums, means, norms and extremes: which entries the result depends on, and where the largest was.

An index of an extreme is a position along the reduced dimension (`Label.index_of`). When positions of that dimension
are removed, another entry would be chosen: that is inexact, but what the index looks up can follow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call, Refused
from niwaki.rules.indexing_read import by_value
from niwaki.rules.label import Label, Scale
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample

aten = torch.ops.aten


def reduced_dims(call: Call, rank: int) -> set[int]:
    """The dimensions that a reduction runs over, all of them unless it says so."""
    given = call.arguments.get("dim")
    if given is None or (not isinstance(given, int) and not len(given)):
        return set(range(rank))
    return {dim % max(rank, 1) for dim in ([given] if isinstance(given, int) else given)}


def reduced(call: Call, zero: Sequence[bool], output: int = 0) -> Label:
    """The label of a reduction: the other dimensions are kept."""
    x: Label = call["self"]
    gone = reduced_dims(call, len(x.axes))
    for dim in gone if x.weight else ():
        call.zeroed_by_method(x, dim)
    keep = bool(call.arguments.get("keepdim"))
    axes, flags = [], []
    for dim, axis in enumerate(x.axes):
        if dim not in gone:
            axes.append(axis)
            flags.append(zero[dim])
        elif keep:
            axes.append(call.fixed(1))
            flags.append(False)
    return call.label(axes, flags, x.weight and output == 0, output)


@nonnegative("self")
@homogeneous("self")
@rule(aten.sum.default, aten.sum.dim_IntList, aten.nansum.default)
def total(call: Call) -> Label:
    """A sum is the same without zeros; it changes with entries that are not zero."""
    x: Label = call["self"]
    for dim in reduced_dims(call, len(x.axes)):
        if not x.zero[dim]:
            call.inexact(x.axes[dim], "it is summed over, and its removed entries are not zero")
    return reduced(call, x.zero)


@nonnegative("self")
@homogeneous("self")
@rule(aten.mean.default, aten.mean.dim)
def mean(call: Call) -> Label:
    """Where removed entries are zero, the mean of the m remaining of n entries is the old one times n/m; a weight may
    take up the factor."""
    x: Label = call["self"]
    scale: tuple[Scale, ...] = ()
    for dim in sorted(reduced_dims(call, len(x.axes))):
        if x.zero[dim]:
            scale += call.scale(x.axes[dim], 1.0, "a mean over this dimension counts its entries")
        else:
            call.inexact(x.axes[dim], "a mean over this dimension counts its entries")
    made = reduced(call, x.zero)
    if call.python.function is torch.rms_norm:  # is given the sizes of the averaged dimensions
        normalised = x.axes[-len(reduced_dims(call, len(x.axes))) :]
        for expression, axis in zip(call.size_exprs([axis.size for axis in normalised]), normalised, strict=True):
            call.size_is(expression, axis, "normalized_shape")
    return call.label(made.axes, made.zero, made.weight, scale=scale)


_ENTRIES = (
    aten.amax.default,
    aten.amin.default,
    aten.prod.default,
    aten.prod.dim_int,
    aten.max.default,
    aten.min.default,
    aten.median.default,
    aten.nanmedian.default,
)
_LARGEST = (aten.amax, aten.max)


@nonnegative(of=(aten.var.correction, aten.std.correction))
@nonnegative("self", of=_ENTRIES)
@rule(aten.var.correction, aten.std.correction, *_ENTRIES)
def average(call: Call) -> Label:
    """The reduced dimension counts in the result; along the others zeros give zeros. Only the largest of entries that
    cannot be negative is the same without zeros. (Its position may be that of a zero: nothing may read it.)"""
    x: Label = call["self"]
    nowhere = all(call.discarded[1:])
    for dim in reduced_dims(call, len(x.axes)):
        if not (call.operator.overloadpacket in _LARGEST and x.nonnegative and x.zero[dim] and nowhere):
            call.inexact(x.axes[dim], f"{call.operator} depends on how many entries there are along this dimension")
    return reduced(call, x.zero)


@nonnegative()
@homogeneous("self")
@rule(aten.linalg_vector_norm.default, aten.norm.Scalar, aten.norm.ScalarOpt_dim)
def vector_norm(call: Call) -> Label:
    """A norm is the same without zeros, except one of negative order, which depends on the smallest entries."""
    x: Label = call["self"]
    order = call.arguments.get("ord", call.arguments.get("p"))
    if order == 0:
        raise Refused("a norm of order 0 counts entries")
    for dim in reduced_dims(call, len(x.axes)):
        if not x.zero[dim] or (order is not None and order < 0):
            call.inexact(x.axes[dim], "a norm runs over it, and its removed entries change it")
    return reduced(call, x.zero)


@rule(aten.std_mean.correction, aten.var_mean.correction)
def averages(call: Call) -> list[Label]:
    """As `average`, with two results."""
    return [average(call), reduced(call, (False,) * len(call["self"].axes), output=1)]


@rule(
    aten.any.default,
    aten.any.dim,
    aten.any.dims,
    aten.all.default,
    aten.all.dim,
    aten.all.dims,
    aten.count_nonzero.default,
    aten.count_nonzero.dim_IntList,
    aten.logsumexp.default,
)
def summary(call: Call) -> Label:
    """As `average`, but zeros need not give zeros."""
    x: Label = call["self"]
    for dim in reduced_dims(call, len(x.axes)):
        call.pin(x.axes[dim], f"{call.operator} depends on all entries along this dimension")
    return reduced(call, (False,) * len(x.axes))


@nonnegative("self")
@rule(
    aten.kthvalue.default,
    aten.max.dim,
    aten.median.dim,
    aten.min.dim,
    aten.mode.default,
    aten.nanmedian.dim,
)
def max_with_index(call: Call) -> list[Label]:
    """As `average`, with the position of the entry, which among several zeros may be a removed one."""
    return [average(call), _place(call, output=1)]


@rule(aten.argmax.default, aten.argmin.default)
def argmax(call: Call) -> Label:
    """The position of the largest entry, or of the smallest."""
    x: Label = call["self"]
    if call["dim"] is None:
        return summary(call)
    for dim in reduced_dims(call, len(x.axes)):
        call.inexact(x.axes[dim], f"{call.operator} depends on all entries along this dimension")
    return _place(call, output=0)


def _place(call: Call, output: int) -> Label:
    """Positions along the one reduced dimension."""
    x: Label = call["self"]
    made = reduced(call, (False,) * len(x.axes), output)
    return replace(made, index_of=x.axes[min(reduced_dims(call, len(x.axes)))] if x.axes else None)


@rule(aten.aminmax.default)
def aminmax(call: Call) -> list[Label]:
    """Least and largest entries."""
    x, dim = call["self"], call["dim"]
    for i, axis in enumerate(x.axes):
        if dim is None or i == dim % len(x.axes):
            call.pin(axis, f"{call.operator} depends on all entries along this dimension")
    rest = [] if dim is None else [i for i in range(len(x.axes)) if i != dim % len(x.axes)]
    axes = [x.axes[i] for i in rest]
    if dim is not None and call["keepdim"]:
        axes.insert(dim % len(x.axes), call.fixed(1))
    return [call.label(axes, output=output) for output in (0, 1)]


rule(aten._is_all_true.default, aten._is_any_true.default, aten.equal.default)(by_value)


class _Over(nn.Module):
    """A function of the product of parameters [3, 4, 5] and [4, 5], bent by a sigmoid or not."""

    def __init__(self, function: Callable[[Tensor], Tensor], bent: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(4, 5))
        self.function, self.bent = function, bent

    def forward(self) -> Tensor:
        x = self.a * self.b
        return self.function(x.sigmoid() + 0.1 * self.a if self.bent else x)


def over(function: Callable[[Tensor], Tensor], bent: bool) -> Callable[[], nn.Module]:
    """A builder of samples: ``function`` of a tensor [3, 4, 5] made of parameters."""
    return lambda: _Over(function, bent)


class _Sought(nn.Module):
    """The position of the largest entry along dimension 1 of [3, 4, 5], or the row of a table of four at it; and a
    product that may shrink in any case."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.arange(4.0) - 5)
        self.c = nn.Parameter(torch.randn(4)) if table else None
        self.d = nn.Parameter(torch.randn(6, 5))

    def forward(self) -> tuple[Tensor, Tensor]:
        place = (self.a + self.b[:, None]).argmax(1)
        return place if self.c is None else self.c[place], torch.relu(self.d) @ self.d.detach().mT


class _SoughtAmongZeros(nn.Module):
    """The largest along dimension 1 of the nonnegative entries of [3, 4, 5]: its value, or the row of a table at its
    position; and a product that may shrink in any case."""

    def __init__(self, table: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4, 5)), nn.Parameter(torch.randn(4, 5))
        self.c, self.d, self.table = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(6, 5)), table

    def forward(self) -> tuple[Tensor, Tensor]:
        value, place = (self.a * self.b).relu().max(1)
        return self.c[place] if self.table else value, torch.relu(self.d) @ self.d.detach().mT


class _Extremes(nn.Module):
    """Least and largest entries of a bent parameter [4, 6], and a product with it, of which the rest may shrink."""

    def __init__(self, dim: int | None = None, keepdim: bool = False) -> None:
        super().__init__()
        self.a, self.c = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 5))
        self.dim, self.keepdim = dim, keepdim

    def forward(self) -> tuple[Tensor, ...]:
        return (*torch.aminmax(self.a.sigmoid() * 3, dim=self.dim, keepdim=self.keepdim), self.a @ self.c)


for _bent in (False, True):
    sample(total)(over(lambda x: x.sum(1), _bent))
    sample(total)(over(lambda x: x.sum(dim=(0, 2), keepdim=True), _bent))
    sample(mean)(over(lambda x: x.mean(2), _bent))
    sample(mean)(over(lambda x: x.mean((0, 1), keepdim=True), _bent))
    sample(average)(over(lambda x: x.amax(2), _bent))
    sample(average)(over(lambda x: x.amax((0, 1), keepdim=True), _bent))
    sample(average)(over(lambda x: x.relu().amax(1), _bent))
    sample(average)(over(lambda x: x.abs().amin(1), _bent))
    sample(average)(over(lambda x: x.std(1), _bent))
    sample(averages)(over(lambda x: torch.var_mean(x, 1)[0], _bent))
    sample(averages)(over(lambda x: torch.var_mean(x, 2)[1], _bent))
    sample(vector_norm)(over(lambda x: torch.linalg.vector_norm(x, dim=1), _bent))
    sample(vector_norm)(over(lambda x: torch.linalg.vector_norm(x, 1.0, dim=(0, 2), keepdim=True), _bent))
    sample(vector_norm)(over(lambda x: torch.linalg.vector_norm(x, -1.0, dim=2) + x.sum(2), _bent))
    sample(summary)(over(lambda x: x.logsumexp(1), _bent))
    sample(summary)(over(lambda x: x * torch.any(x > 0.7, dim=(0, 2), keepdim=True), _bent))
    sample(max_with_index)(over(lambda x: x.max(0)[0], _bent))
sample(average)(over(lambda x: x.square().max() * x, bent=False))
sample(max_with_index)(lambda: _SoughtAmongZeros(table=True))
sample(max_with_index)(lambda: _SoughtAmongZeros(table=False))
sample(argmax)(lambda: _Sought(table=False))
sample(argmax)(lambda: _Sought(table=True))
sample(aminmax)(lambda: _Extremes())
sample(aminmax)(lambda: _Extremes(dim=-1))
sample(aminmax)(lambda: _Extremes(dim=0, keepdim=True))


@mutant(total)
@mutant(mean)
@mutant(average)
@mutant(vector_norm)
def _any_dimension_can_go(call: Call) -> Label:
    return reduced(call, call["self"].zero)


@mutant(total)
@mutant(mean)
@mutant(average)
@mutant(vector_norm)
def _what_is_left_is_zero(call: Call) -> Label:
    right = {aten.sum: total, aten.mean: mean, aten.linalg_vector_norm: vector_norm}.get(
        call.operator.overloadpacket, average
    )(call)
    return call.label(right.axes, [True] * len(right.axes))


@mutant(average)
def _the_wrong_dimension_counts(call: Call) -> Label:
    x: Label = call["self"]
    for dim in set(range(len(x.axes))) - reduced_dims(call, len(x.axes)):
        call.pin(x.axes[dim], "")
    return reduced(call, x.zero)


def _largest_misses_nothing(call: Call, dims: set[int]) -> Label:
    x: Label = call["self"]
    for dim in reduced_dims(call, len(x.axes)):
        if call.operator.overloadpacket not in _LARGEST or dim not in dims:
            call.inexact(x.axes[dim], "")
    return reduced(call, x.zero)


@mutant(average)
def _zeros_are_never_the_largest(call: Call) -> Label:
    return _largest_misses_nothing(call, {dim for dim, zero in enumerate(call["self"].zero) if zero})


@mutant(average)
def _what_is_not_negative_is_missed(call: Call) -> Label:
    return _largest_misses_nothing(call, set(range(3)) if call["self"].nonnegative else set())


@mutant(averages)
def _moments_as_sums(call: Call) -> list[Label]:
    return [reduced(call, call["self"].zero), reduced(call, call["self"].zero, output=1)]


@mutant(averages)
def _moments_are_zero(call: Call) -> list[Label]:
    right = averages(call)
    return [call.label(x.axes, [True] * len(x.axes), output=i) for i, x in enumerate(right)]


@mutant(summary)
def _summary_as_sum(call: Call) -> Label:
    return reduced(call, call["self"].zero)


@mutant(summary)
def _summary_of_zeros_is_zero(call: Call) -> Label:
    return call.label(summary(call).axes, [True] * 2)


@mutant(max_with_index)
def _largest_as_a_sum(call: Call) -> list[Label]:
    return [reduced(call, call["self"].zero), reduced(call, call["self"].zero, output=1)]


@mutant(max_with_index)
def _largest_is_zero(call: Call) -> list[Label]:
    return [call.label(x.axes, [True] * len(x.axes), output=i) for i, x in enumerate(max_with_index(call))]


@mutant(max_with_index)
def _place_among_zeros_follows(call: Call) -> list[Label]:
    x: Label = call["self"]
    for dim in () if x.nonnegative else reduced_dims(call, len(x.axes)):
        call.inexact(x.axes[dim], "")
    return [reduced(call, x.zero), _place(call, output=1)]


@mutant(argmax)
def _sought_among_what_is_left(call: Call) -> Label:
    return reduced(call, (False,) * len(call["self"].axes))


@mutant(argmax)
def _place_of_zeros_is_zero(call: Call) -> Label:
    made = argmax(call)
    return call.label(made.axes, [True] * len(made.axes))


@mutant(aminmax)
def _any_entry_can_go(call: Call) -> list[Label]:
    return [call.opaque(output) for output in (0, 1)]


@mutant(aminmax)
def _another_dimension(call: Call) -> list[Label]:
    x, dim = call["self"], call["dim"]
    for i, axis in enumerate(x.axes):
        if dim is not None and i != dim % len(x.axes):
            call.pin(axis, "")
    return [call.opaque(output) for output in (0, 1)]


@mutant(aminmax)
def _extremes_of_zeros(call: Call) -> list[Label]:
    return [call.label(x.axes, [True] * len(x.axes), output=i) for i, x in enumerate(aminmax(call))]
