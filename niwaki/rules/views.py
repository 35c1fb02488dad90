"""Operators that only arrange: view, permute, expand, and their kin."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from niwaki.rules.axis import Axis, merge
from niwaki.rules.registry import Call, Label, Refused, mutant, rule, sample

aten = torch.ops.aten


@rule(aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten._reshape_alias.default)
def view(call: Call) -> Label:
    """Regroup factors. Blocks of dimensions with equal products are merged and parted again."""
    x: Label = call["self"]
    shape = call.shapes[0]
    axes: list[Axis] = [call.fixed(1)] * len(shape)
    zero = [False] * len(shape)
    for ours, theirs in blocks(x.shape, shape):
        flags = all(x.zero[i] for i in ours if x.axes[i].free)
        parts = _regroup(call, [x.axes[i] for i in ours], [shape[j] for j in theirs])
        for j, axis in zip(theirs, parts, strict=True):
            axes[j], zero[j] = axis, flags
    for expression, axis in zip(call.sizes(call["size"]), axes, strict=True):
        call.size_is(expression, axis, "a size given to view")
    return call.label(axes, zero, x.weight)


def _regroup(call: Call, axes: Sequence[Axis], sizes: Sequence[int]) -> list[Axis]:
    if len(axes) == len(sizes) == 1:
        return list(axes)
    whole = merge(axes)
    return [whole] if len(sizes) == 1 else call.split(whole, sizes)


def blocks(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The finest pairs of dimension runs with equal products; dimensions of size 1 belong to none."""
    if 0 in before:
        raise Refused("a tensor without entries is rearranged")
    left = [i for i, size in enumerate(before) if size != 1]
    right = [j for j, size in enumerate(after) if size != 1]
    pairs = []
    while left or right:
        ours, theirs = [left.pop(0)], [right.pop(0)]
        a, b = before[ours[0]], after[theirs[0]]
        while a != b:
            if a < b:
                ours.append(left.pop(0))
                a *= before[ours[-1]]
            else:
                theirs.append(right.pop(0))
                b *= after[theirs[-1]]
        pairs.append((ours, theirs))
    return pairs


def _arranged(call: Call, order: Sequence[int | None]) -> Label:
    """Dimensions of ``self`` in a new order; None is a new dimension of size 1."""
    x: Label = call["self"]
    axes = [call.fixed(1) if i is None else x.axes[i] for i in order]
    return call.label(axes, [i is not None and x.zero[i] for i in order], x.weight)


@rule(aten.permute.default)
def permute(call: Call) -> Label:
    """Dimensions in a given order."""
    return _arranged(call, [dim % len(call["dims"]) for dim in call["dims"]])


@rule(aten.transpose.int)
def transpose(call: Call) -> Label:
    """Two dimensions swapped."""
    rank = len(call["self"].axes)
    order = list(range(rank))
    a, b = call["dim0"] % max(rank, 1), call["dim1"] % max(rank, 1)
    if rank:
        order[a], order[b] = order[b], order[a]
    return _arranged(call, order)


@rule(aten.t.default)
def t(call: Call) -> Label:
    """A matrix transposed."""
    return _arranged(call, list(range(len(call["self"].axes)))[::-1])


@rule(aten.unsqueeze.default)
def unsqueeze(call: Call) -> Label:
    """A new dimension of size 1."""
    rank = len(call["self"].axes)
    order: list[int | None] = list(range(rank))
    order.insert(call["dim"] % (rank + 1), None)
    return _arranged(call, order)


@rule(aten.squeeze.default, aten.squeeze.dim, aten.squeeze.dims)
def squeeze(call: Call) -> Label:
    """Dimensions of size 1 dropped."""
    x: Label = call["self"]
    given = call.arguments.get("dim")
    dims = range(len(x.axes)) if given is None else [given] if isinstance(given, int) else given
    dropped = {dim % len(x.axes) for dim in dims if x.axes[dim].size == 1} if x.axes else set()
    return _arranged(call, [i for i in range(len(x.axes)) if i not in dropped])


@rule(aten.expand.default)
def expand(call: Call) -> Label:
    """Dimensions of size 1 repeated: each copy may go on its own."""
    x: Label = call["self"]
    shape = call.shapes[0]
    lead = len(shape) - len(x.axes)
    expressions = call.sizes(call["size"])
    axes, zero = [], []
    for dim, size in enumerate(shape):
        old = x.axes[dim - lead] if dim >= lead else None
        copied = size != 1 and (old is None or old.size != size)
        axis = call.fresh(size) if copied else old if old is not None else call.fixed(1)
        call.size_is(expressions[dim], axis, "a size given to expand")
        if copied and expressions[dim] is None:
            call.pin(axis, "niwaki cannot see where this size comes from")
        axes.append(axis)
        zero.append(not copied and old is not None and x.zero[dim - lead])
    return call.label(axes, zero, x.weight)


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.a = 3, nn.Parameter(torch.randn(2, 12, 5))

    def forward(self) -> torch.Tensor:
        return self.a.view(2, self.heads, -1, 5).transpose(1, 2).reshape(2, -1, 5) * 2


class _Flatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 4, 3, 3)), nn.Parameter(torch.randn(36))

    def forward(self) -> torch.Tensor:
        return self.a.flatten(1) + self.b


class _Arrange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4, 1, 5)), nn.Parameter(torch.randn(5, 3, 4))

    def forward(self) -> torch.Tensor:
        x = self.a.squeeze(2).permute(2, 0, 1) + self.b
        return x.transpose(0, 2).unsqueeze(1)


class _Transposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))

    def forward(self) -> torch.Tensor:
        return self.a.t() * self.b


class _Expand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.copies, self.a, self.b = 4, nn.Parameter(torch.randn(3, 1, 5)), nn.Parameter(torch.randn(3, 4, 5))

    def forward(self) -> torch.Tensor:
        return (self.a.expand(-1, self.copies, -1) + self.b).reshape(3 * self.copies, 5)


sample(view)(_Heads)
sample(view)(_Flatten)
sample(permute)(_Arrange)
sample(transpose)(_Arrange)
sample(unsqueeze)(_Arrange)
sample(squeeze)(_Arrange)
sample(t)(_Transposed)
sample(expand)(_Expand)


@mutant(view)
def _inner_before_outer(call: Call) -> Label:
    x: Label = call["self"]
    axes: list[Axis] = [call.fixed(1)] * len(call.shapes[0])
    for ours, theirs in blocks(x.shape, call.shapes[0]):
        whole = merge([x.axes[i] for i in ours]).take(slice(None, None, -1))
        sizes = [call.shapes[0][j] for j in theirs]
        for j, axis in zip(theirs, [whole] if len(sizes) == 1 else call.split(whole, sizes), strict=True):
            axes[j] = axis
    for expression, axis in zip(call.sizes(call["size"]), axes, strict=True):
        call.size_is(expression, axis, "a size given to view")
    return call.label(axes)


@mutant(view)
def _forgets_the_sizes(call: Call) -> Label:
    x: Label = call["self"]
    axes: list[Axis] = [call.fixed(1)] * len(call.shapes[0])
    for ours, theirs in blocks(x.shape, call.shapes[0]):
        parts = _regroup(call, [x.axes[i] for i in ours], [call.shapes[0][j] for j in theirs])
        for j, axis in zip(theirs, parts, strict=True):
            axes[j] = axis
    call.sizes(call["size"])
    return call.label(axes)


def _unmoved(call: Call) -> Label:
    shape = call.shapes[0]
    pool = [axis for axis in call["self"].axes if axis.size != 1]
    return call.label([call.fixed(1) if size == 1 else pool.pop(0).take(slice(None, None, -1)) for size in shape])


@mutant(permute)
@mutant(transpose)
def _wrong_way_round(call: Call) -> Label:
    return call.label([call.fresh(size) for size in call.shapes[0]])


mutant(t)(_wrong_way_round)
mutant(unsqueeze)(_unmoved)
mutant(squeeze)(_unmoved)


@mutant(expand)
def _copies_are_one(call: Call) -> Label:
    return call.label([call.fresh(size) if size > 1 else call.fixed(1) for size in call.shapes[0]])
