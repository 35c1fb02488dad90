"""Follow axes through operators that only rearrange entries: view, permute, expand and the like."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from niwaki.rules.axis import Axis, merge
from niwaki.rules.call import Call, Refused
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, rule, sample

aten = torch.ops.aten


@homogeneous("self", whole=True)
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
    if call.python.function in (torch.unflatten, torch.Tensor.unflatten):  # is given the sizes of one dimension only
        dim = call.python.numbers[0].value % len(x.axes)
        told = len(shape) - len(x.axes) + 1
        expressions = (
            [None] * dim + call.size_exprs(shape[dim : dim + told], behind=1) + [None] * (len(shape) - dim - told)
        )
    elif call.python.function in REPEATING:  # which joins the copies itself
        call.derived_by_torch("size")
        expressions = [None] * len(shape)
    else:
        expressions = call.size_exprs(call["size"])
    for expression, axis in zip(expressions, axes, strict=True):
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


@homogeneous("self", whole=True)
@rule(aten.as_strided_.default, aten.as_strided.default)
def strided(call: Call) -> Label:
    """torch itself calls this to give a tensor the strides of a memory format; only calls that keep the shape are
    followed."""
    x: Label = call["self"]
    if call.operator is not aten.as_strided_.default or call.python.function in STRIDING or x.shape != call.shapes[0]:
        raise Refused("its memory is read by strides")
    call.derived_by_torch("size", "stride")
    return call.label(x.axes, x.zero, x.weight)


REPEATING = (torch.repeat_interleave, torch.Tensor.repeat_interleave)
STRIDING = (torch.as_strided_, torch.Tensor.as_strided_)


@homogeneous("self", whole=True)
@rule(aten.permute.default)
def permute(call: Call) -> Label:
    """Dimensions in a given order."""
    return _arranged(call, [dim % len(call["dims"]) for dim in call["dims"]])


@homogeneous("self", whole=True)
@rule(aten.transpose.int, aten.transpose_.default)
def transpose(call: Call) -> Label:
    """Two dimensions swapped."""
    rank = len(call["self"].axes)
    order = list(range(rank))
    a, b = call["dim0"] % max(rank, 1), call["dim1"] % max(rank, 1)
    if rank:
        order[a], order[b] = order[b], order[a]
    return _arranged(call, order)


@homogeneous("self", whole=True)
@rule(aten.t.default, aten.t_.default)
def t(call: Call) -> Label:
    """A matrix transposed."""
    return _arranged(call, list(range(len(call["self"].axes)))[::-1])


@homogeneous("self", whole=True)
@rule(aten.unsqueeze.default, aten.unsqueeze_.default)
def unsqueeze(call: Call) -> Label:
    """A new dimension of size 1."""
    rank = len(call["self"].axes)
    order: list[int | None] = list(range(rank))
    order.insert(call["dim"] % (rank + 1), None)
    return _arranged(call, order)


@homogeneous("self", whole=True)
@rule(
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.squeeze_.default,
    aten.squeeze_.dim,
    aten.squeeze_.dims,
)
def squeeze(call: Call) -> Label:
    """Dimensions of size 1 dropped."""
    x: Label = call["self"]
    given = call.arguments.get("dim")
    rank = len(x.axes)
    dims = range(rank) if given is None else [given] if isinstance(given, int) else given
    asked = {dim % rank for dim in dims} if rank else set()
    for dim in asked:
        if x.axes[dim].size != 1:
            call.pin(x.axes[dim], "squeeze would drop it if one position were left")
    return _arranged(call, [i for i in range(rank) if i not in asked or x.axes[i].size != 1])


@homogeneous("self", whole=True)
@rule(aten.expand.default)
def expand(call: Call) -> Label:
    """Dimensions of size 1 repeated: the copies may be removed one by one."""
    x: Label = call["self"]
    shape = call.shapes[0]
    lead = len(shape) - len(x.axes)
    if call.python.function in REPEATING:  # is given the number of copies alone, maybe another size too
        call.derived_by_torch("size")
        times = {size for size, axis in zip(shape, x.axes, strict=True) if axis.size != size} or {1}
        expressions = [
            call.int_expr(size) if size in times and axis.size == 1 else None
            for size, axis in zip(shape, x.axes, strict=True)
        ]
    else:
        expressions = call.size_exprs(call["size"])
    axes, zero, uniform = [], [], []
    for dim, size in enumerate(shape):
        old = x.axes[dim - lead] if dim >= lead else None
        copied = size != 1 and (old is None or old.size != size)
        axis = call.fresh(size) if copied else old if old is not None else call.fixed(1)
        call.size_is(expressions[dim], axis, "a size given to expand")
        if copied and expressions[dim] is None and not call.derives_sizes:
            call.pin(axis, "niwaki cannot see where this size comes from")
        axes.append(axis)
        zero.append(not copied and old is not None and x.zero[dim - lead])
        uniform.append(copied or (dim >= lead and x.uniform[dim - lead : dim - lead + 1] == (True,)))
    return replace(call.label(axes, zero, x.weight), uniform=tuple(uniform))


class _Viewed(nn.Module):
    """A function of parameters [2, 12, 5] and [2, 3, 5] and the attributes heads = 3 and width = 4."""

    def __init__(self, function: Callable[[Tensor, Tensor, int, int], Tensor]) -> None:
        super().__init__()
        self.heads, self.width, self.function = 3, 4, function
        self.a, self.b = nn.Parameter(torch.randn(2, 12, 5)), nn.Parameter(torch.randn(2, 3, 5))

    def forward(self) -> Tensor:
        return self.function(self.a * 2, self.b, self.heads, self.width)


class _Flatten(nn.Module):
    """Channels and pixels become one dimension that meets a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 4, 3, 3)), nn.Parameter(torch.randn(36))

    def forward(self) -> Tensor:
        return self.a.flatten(1) + self.b


class _Arranged(nn.Module):
    """A function of a parameter [3, 4, 1, 4]; dimensions cannot be told apart by their sizes."""

    def __init__(self, function: Callable[[Tensor], Tensor], bent: bool = False) -> None:
        super().__init__()
        self.a, self.function, self.bent = nn.Parameter(torch.randn(3, 4, 1, 4)), function, bent

    def forward(self) -> Tensor:
        return self.function(self.a.sigmoid() if self.bent else self.a)


class _Strided(nn.Module):
    """Strides that a model asks for, and a product that may shrink in any case."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 3))

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.a.clone().as_strided_((3, 4), (1, 3)), self.b.detach().relu() @ self.b.relu().T


def _pooled(x: Tensor) -> Tensor:
    """Averages in another memory format, which torch restores."""
    return torch.nn.functional.adaptive_avg_pool2d(x.permute(0, 3, 1, 2), 1)


class _Expand(nn.Module):
    """As many copies as another tensor has rows."""

    def __init__(self) -> None:
        super().__init__()
        self.copies, self.a, self.b = 4, nn.Parameter(torch.randn(3, 1, 5)), nn.Parameter(torch.randn(3, 4, 5))

    def forward(self) -> Tensor:
        return self.a.expand(-1, self.copies, -1) + self.b


class _ExpandAlone(nn.Module):
    """The same without anything else that knows the number of copies."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.w = nn.Parameter(torch.randn(3, 1, 5)), nn.Parameter(torch.randn(4, 6))

    def forward(self) -> Tensor:
        return self.a.expand(3, 4, 5).transpose(1, 2) @ self.w


sample(view)(lambda: _Viewed(lambda a, b, heads, width: a.view(2, heads, -1, 5).transpose(1, 2).reshape(2, -1, 5)))
sample(view)(lambda: _Viewed(lambda a, b, heads, width: a.view(2, heads, width, 5) * b[:, :, None]))
sample(view)(lambda: _Viewed(lambda a, b, heads, width: a.view(-1, 3, 4, 5).sigmoid() * b[:, :, None]))
sample(view)(lambda: _Viewed(lambda a, b, heads, width: a.sigmoid().reshape(2, heads, -1).transpose(1, 2)))
sample(view)(lambda: _Viewed(lambda a, b, heads, width: torch.unflatten(a, 1, (heads, -1)) * b[:, :, None]))
sample(view)(_Flatten)


def arrange(function: Callable[[Tensor], Tensor], bent: bool) -> Callable[[], nn.Module]:
    """A builder of samples: ``function`` of a parameter [3, 4, 1, 4], or of its sigmoid."""
    return lambda: _Arranged(function, bent)


sample(strided)(_Strided)
sample(transpose)(lambda: _Arranged(lambda x: (x * 2).transpose_(0, 3) * x.permute(3, 1, 2, 0)))
for _bent in (False, True):
    sample(strided)(arrange(_pooled, _bent))
    sample(permute)(arrange(lambda x: x.permute(2, 3, 0, 1) * 2, _bent))
    sample(transpose)(arrange(lambda x: x.transpose(1, -1) * 2, _bent))
    sample(unsqueeze)(arrange(lambda x: x.unsqueeze(-1) * 2, _bent))
    sample(squeeze)(arrange(lambda x: x.squeeze(2) * 2, _bent))
    sample(t)(arrange(lambda x: x[0, :, 0].t() * 2, _bent))
sample(squeeze)(lambda: _Viewed(lambda a, b, heads, width: (a[:, :, None].squeeze() * 2) @ b[0].t()))
sample(expand)(_Expand)
sample(expand)(_ExpandAlone)


def _as_given(call: Call, axes: Sequence[Axis], zero: bool = False) -> Label:
    for expression, axis in zip(call.size_exprs(call["size"]), axes, strict=True):
        call.size_is(expression, axis, "")
    return call.label(axes, [zero] * len(axes))


@mutant(view)
def _backwards(call: Call) -> Label:
    x, shape = call["self"], call.shapes[0]
    axes: list[Axis] = [call.fixed(1)] * len(shape)
    for ours, theirs in blocks(x.shape, shape):
        whole = merge([x.axes[i] for i in ours]).take(slice(None, None, -1))
        sizes = [shape[j] for j in theirs]
        for j, axis in zip(theirs, [whole] if len(sizes) == 1 else call.split(whole, sizes), strict=True):
            axes[j] = axis
    return _as_given(call, axes)


@mutant(view)
def _inner_before_outer(call: Call) -> Label:
    x, shape = call["self"], call.shapes[0]
    axes: list[Axis] = [call.fixed(1)] * len(shape)
    for ours, theirs in blocks(x.shape, shape):
        whole = _regroup(call, [x.axes[i] for i in ours], [math.prod(shape[j] for j in theirs)])[0]
        for j, axis in zip(theirs[::-1], call.split(whole, [shape[j] for j in theirs[::-1]]), strict=True):
            axes[j] = axis
    return _as_given(call, axes)


@mutant(view)
def _forgets_the_sizes(call: Call) -> Label:
    x: Label = call["self"]
    axes: list[Axis] = [call.fixed(1)] * len(call.shapes[0])
    for ours, theirs in blocks(x.shape, call.shapes[0]):
        parts = _regroup(call, [x.axes[i] for i in ours], [call.shapes[0][j] for j in theirs])
        for j, axis in zip(theirs, parts, strict=True):
            axes[j] = axis
    call.size_exprs(call["size"])
    return call.label(axes)


@mutant(view)
def _views_are_zero(call: Call) -> Label:
    right = view(call)
    return call.label(right.axes, [True] * len(right.axes))


def _any_of_its_size(call: Call, axes: Sequence[Axis]) -> Label:
    """Sizes fit, but dimensions of equal size change places."""
    pool = [axis for axis in axes if axis.size != 1]
    chosen = []
    for size in call.shapes[0]:
        fitting = next((i for i, axis in enumerate(pool) if axis.size == size), None)
        chosen.append(call.fixed(1) if fitting is None else pool.pop(fitting))
    return call.label(chosen)


@mutant(strided)
def free(call: Call) -> Label:
    """No axes are equated: wrong for every operator that rearranges."""
    x: Label = call["self"]
    pool = [axis.take(slice(None, None, -1)) for axis in x.axes]
    chosen = []
    for size in call.shapes[0]:
        fitting = next((i for i, axis in enumerate(pool) if axis.size == size), None)
        chosen.append(call.fresh(size) if fitting is None else pool.pop(fitting))
    return call.label(chosen)


@mutant(permute)
@mutant(transpose)
@mutant(t)
def _as_before(call: Call) -> Label:
    return _any_of_its_size(call, call["self"].axes)


@mutant(unsqueeze)
@mutant(squeeze)
def _from_the_end(call: Call) -> Label:
    return _any_of_its_size(call, call["self"].axes[::-1])


def zeros_of(right: Callable[[Call], Label]) -> Callable[[Call], Label]:
    """A rule's own axes, with zeros wherever something was removed."""

    def claims_zeros(call: Call) -> Label:
        axes = right(call).axes
        return call.label(axes, [True] * len(axes))

    return claims_zeros


for _right in (permute, transpose, t, unsqueeze, squeeze):
    mutant(_right)(zeros_of(_right))


@mutant(expand)
def _copies_are_counted_nowhere(call: Call) -> Label:
    x: Label = call["self"]
    call.size_exprs(call["size"])
    pairs = zip(x.axes, call.shapes[0], strict=True)
    return call.label([axis if axis.size == size else call.fresh(size) for axis, size in pairs])


@mutant(expand)
def _copies_are_zero(call: Call) -> Label:
    right = expand(call)
    return call.label(right.axes, [True] * len(right.axes))
