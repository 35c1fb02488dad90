"""Follow axes through slices, selections and lookups: positions are read by index, by mask or by value."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.core.numbers import Combination, Literal
from niwaki.rules.axis import Axis
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample

aten = torch.ops.aten
LOOKED_UP = "it is looked up by index"
_EVERY = "it is read with a step, so its positions are counted"


@nonnegative("self")
@homogeneous("self")
@rule(aten.slice.Tensor)
def sliced(call: Call) -> Label:
    """Positions ``start:end:step``. A bound counts the positions before it; a negative bound counts those after it."""
    x, dim, step = call["self"], call["dim"] % len(call["self"].axes), call["step"]
    axis = x.axes[dim]
    if step != 1:
        return _strided(call, x, dim)
    axes = list(x.axes)
    axes[dim] = axis.take(slice(call["start"], call["end"], step))
    _bound(call, axis, call["start"])
    if call.python.function in (torch.narrow, torch.Tensor.narrow):  # called with a length, not an end
        call.size_is(call.int_expr(axes[dim].size), axes[dim], "the length of a slice")
        call.derived_by_torch("end")
    else:
        _bound(call, axis, call["end"])
    return call.label(axes, x.zero, x.weight)


def _strided(call: Call, x: Label, dim: int) -> Label:
    """Every ``step``-th position. Of a whole dimension this takes one position of each run of ``step``, so whole runs
    can be removed; any other slice would take other positions after a cut."""
    axis, start, step = x.axes[dim], call["start"] or 0, call["step"]
    axes = list(x.axes)
    if axis.size % step == 0 and 0 <= start < step and (call["end"] is None or call["end"] >= axis.size):
        runs, inside = call.split(axis, (axis.size // step, step))
        call.pin(inside, _EVERY)
        call.derived_by_torch("start", "end")
        axes[dim] = runs
    else:
        call.pin(axis, _EVERY)
        axes[dim] = axis.take(slice(call["start"], call["end"], step))
    return call.label(axes, x.zero, x.weight)


def _bound(call: Call, axis: Axis, given: int | None) -> None:
    """Tie a bound to the number of positions it counts. A literal at or beyond an end takes all positions, before the
    cut and after."""
    if given is None or given == 0:
        return
    told = call.int_expr(given)
    if isinstance(told, Literal) and abs(given) >= axis.size:
        return
    if given < 0:
        counted = told if isinstance(told, Literal) else Combination("*", told, Literal(-1), -given)
        call.size_is(counted, axis.take(slice(given, None)), "the bound of a slice, counted from the end,")
    else:
        call.size_is(told, axis.take(slice(None, given)), "the bound of a slice")


@nonnegative("self")
@homogeneous("self")
@rule(aten.select.int)
def select(call: Call) -> Label:
    """One position of ``dim``. Where only the size of the result is read (``w[0].numel()``), the first or last may be
    any."""
    x, dim = call["self"], call["dim"] % len(call["self"].axes)
    if call["index"] not in (0, -1) or not all(call.discarded):
        call.pin(x.axes[dim], "one position of it is selected by index")
    rest = [i for i in range(len(x.axes)) if i != dim]
    return call.label([x.axes[i] for i in rest], [x.zero[i] for i in rest], x.weight)


@nonnegative("self")
@homogeneous("self")
@rule(aten.index.Tensor, aten._unsafe_index.Tensor)
def index(call: Call) -> Label:
    """Dimensions with an index tensor are read by index, the others are kept."""
    x: Label = call["self"]
    looked_up, lead = by_index(call, x, LOOKED_UP)
    rest = [dim for dim in range(len(x.axes)) if dim not in looked_up]
    new = len(call.shapes[0]) - len(rest)
    kept = [dim for dim in rest if dim < lead], [dim for dim in rest if dim >= lead]
    made = [call.fixed(size, LOOKED_UP) for size in call.shapes[0][len(kept[0]) : len(kept[0]) + new]]
    axes = [*(x.axes[dim] for dim in kept[0]), *made, *(x.axes[dim] for dim in kept[1])]
    zero = [*(x.zero[dim] for dim in kept[0]), *(False for _ in made), *(x.zero[dim] for dim in kept[1])]
    return call.label(axes, zero, x.weight)


def by_index(call: Call, x: Label, why: str) -> tuple[list[int], int]:
    """Pin the dimensions of ``x`` that have an index tensor. Returns them, and the dimension of the result that
    replaces them."""
    dims: list[int] = []
    for dim, tensor in enumerate(call["indices"]):
        if tensor is not None:
            dims += range(dim, dim + (len(tensor.axes) if tensor.dtype is torch.bool else 1))
            for axis in tensor.axes:
                call.pin(axis, "it is an index")
    by_number = {dim: tensor for dim, tensor in enumerate(call["indices"]) if tensor is not None}
    for dim in dims:
        if dim in by_number and by_number[dim].dtype is not torch.bool:
            call.indexed_by(x.axes[dim], by_number[dim], why)
        else:
            call.pin(x.axes[dim], why)
    adjacent = dims == list(range(dims[0], dims[0] + len(dims)))
    return dims, dims[0] if adjacent else 0


@nonnegative("self")
@homogeneous("self")
@rule(aten.index_select.default)
def index_select(call: Call) -> Label:
    """Positions of ``dim`` by index."""
    x, dim = call["self"], call["dim"] % max(len(call["self"].axes), 1)
    call.indexed_by(x.axes[dim], call["index"], LOOKED_UP)
    axes = list(x.axes)
    axes[dim] = call.fixed(call.shapes[0][dim], LOOKED_UP)
    return call.label(axes, x.zero, x.weight)


@nonnegative("self")
@homogeneous("self")
@rule(aten.gather.default)
def gather(call: Call) -> Label:
    """Along ``dim`` by index; along the others position by position, as far as the index reaches."""
    x, indices, dim = call["self"], call["index"], call["dim"]
    axes: list[Axis] = []
    for i, (ours, theirs) in enumerate(zip(x.axes, indices.axes, strict=True)):
        if i == dim % len(x.axes):
            call.indexed_by(ours, indices, LOOKED_UP)
            axes.append(theirs)
        else:
            near = ours.take(slice(None, theirs.size))
            call.equate(near, theirs)
            axes.append(near)
    return call.label(axes)


@rule(aten.nonzero.default)
def nonzero(call: Call) -> Label:
    """One row of position numbers per entry that is not zero."""
    for axis in call["self"].axes:
        call.pin(axis, "its positions are found by value")
    return call.opaque(0, "its size is the number of entries that are not zero")


@rule(aten.masked_select.default, aten.take.default)
def by_value(call: Call) -> list[Label]:
    """Every argument is pinned: no position of a result belongs to a position of an argument."""
    why = f"{call.operator} arranges it by value"
    for given in call.arguments.values():
        for axis in given.axes if isinstance(given, Label) else ():
            call.pin(axis, why)
    return [call.opaque(output, why) for output in range(len(call.shapes))]


class _Sliced(nn.Module):
    """Bounds in an attribute, from both ends; the two parts are multiplied by weights and joined."""

    def __init__(self, n: int, stop: int | None = None) -> None:
        super().__init__()
        self.n, self.stop, self.a = n, stop, nn.Parameter(torch.randn(7, 5))
        self.b = nn.Parameter(torch.randn(len(range(7)[n:stop]), 5))

    def forward(self) -> Tensor:
        return torch.cat([self.a[self.n : self.stop] + self.b, self.a[: self.n] * 2])


class _Narrow(nn.Module):
    """A slice whose length is an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.n, self.a, self.b = 4, nn.Parameter(torch.randn(7, 5)), nn.Parameter(torch.randn(4, 5))

    def forward(self) -> Tensor:
        return self.a.narrow(0, 2, self.n) * 2 + self.b


class _By(nn.Module):
    """A function of parameters [4, 6] and [3, 6] and three row numbers."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a, self.b, torch.tensor([2, 0, 2]))


class _Batched(nn.Module):
    """A function of a parameter [5, 4, 6]: one dimension more than the operator reads."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.function = nn.Parameter(torch.randn(5, 4, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a.sigmoid())


class BesideProduct(nn.Module):
    """A function of parameters [4, 6], [4, 3] and [6], and a product that may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (4, 3), (6,)))
        self.d, self.function = nn.Parameter(torch.randn(6, 5)), function

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.function(self.a, self.b, self.c), torch.relu(self.d) @ self.d.detach().mT


sample(sliced)(lambda: _Sliced(4))
sample(sliced)(lambda: _Sliced(-3))
sample(sliced)(lambda: _Sliced(2, 6))
sample(sliced)(_Narrow)
sample(sliced)(lambda: _By(lambda a, b, i: a[::2, 1:3] + 1))
sample(sliced)(lambda: _By(lambda a, b, i: a[:, ::4]))
sample(sliced)(lambda: _By(lambda a, b, i: torch.cat([a[:, 1::2] * 2, a[:, ::2].sigmoid()], 1)))
sample(sliced)(lambda: _By(lambda a, b, i: a[:, 3::2] * 2))
sample(sliced)(lambda: _By(lambda a, b, i: a[:, :4:2] * 2))
sample(sliced)(lambda: _By(lambda a, b, i: a[-3:, :-4]))
sample(sliced)(lambda: _By(lambda a, b, i: a[:, 2:99] * 2))
sample(select)(lambda: _By(lambda a, b, i: a[1] * b))
sample(select)(lambda: _Batched(lambda a: a[:, -1]))
for _place in (0, -1, 3):
    sample(select)(lambda place=_place: _Batched(lambda a: a.sigmoid().flatten(1) * a[place].shape[0]))
sample(index)(lambda: _By(lambda a, b, i: a[i] * 2))
sample(index)(lambda: _Batched(lambda a: a[torch.tensor([0, 1, 2, 4]), :, torch.tensor([2, 3, 0, 1])]))
sample(index)(lambda: _Batched(lambda a: a[:, torch.tensor([0, 1]), torch.tensor([[2], [3]])]))
sample(index_select)(lambda: _By(lambda a, b, i: a.index_select(0, i) * 2))
sample(index_select)(lambda: _Batched(lambda a: a.index_select(1, torch.tensor([3, 1]))))
sample(gather)(lambda: _Batched(lambda a: a.gather(1, torch.zeros_like(a, dtype=torch.int64))))
sample(gather)(lambda: _Batched(lambda a: a.gather(1, torch.zeros_like(a[:4], dtype=torch.int64))))
sample(nonzero)(lambda: BesideProduct(lambda a, b, c: torch.nonzero(a + 10)))
sample(by_value)(lambda: BesideProduct(lambda a, b, c: a.masked_select(torch.tensor([True, False] * 3)) + c[0]))
sample(by_value)(lambda: BesideProduct(lambda a, b, c: a.take(torch.tensor([1, 9, 5])) + b))


@mutant(sliced)
def _bounds_do_not_matter(call: Call) -> Label:
    axes = list(call["self"].axes)
    axes[call["dim"]] = axes[call["dim"]].take(slice(call["start"], call["end"], call["step"]))
    call.size_exprs([number.value for number in call.python.numbers])
    return call.label(axes)


@mutant(sliced)
def _bounds_count_from_the_start(call: Call) -> Label:
    x, dim = call["self"], call["dim"]
    axes = list(x.axes)
    for given in (call["start"], call["end"]):
        if given is not None and given < 99:
            before = axes[dim].take(slice(None, given))
            call.size_is(call.int_expr(given), before, "")
    axes[dim] = axes[dim].take(slice(call["start"], call["end"], call["step"]))
    return call.label(axes)


@mutant(sliced)
def _strides_keep_their_positions(call: Call) -> Label:
    for given in (call["start"], call["end"]):
        _bound(call, call["self"].axes[call["dim"]], given)
    axes = list(call["self"].axes)
    axes[call["dim"]] = axes[call["dim"]].take(slice(call["start"], call["end"], call["step"]))
    return call.label(axes)


@mutant(select)
def _what_is_thrown_away_may_be_anything(call: Call) -> Label:
    x, dim = call["self"], call["dim"] % len(call["self"].axes)
    if not all(call.discarded):
        call.pin(x.axes[dim], "")
    return call.label(x.axes[:dim] + x.axes[dim + 1 :])


@mutant(select)
@mutant(index)
@mutant(index_select)
@mutant(gather)
def _rows_are_free(call: Call) -> Label:
    x: Label = call["self"]
    axes = list(x.axes[len(x.axes) - len(call.shapes[0]) :])
    pairs = zip(axes, call.shapes[0], strict=True)
    return call.label([axis if axis.size == size else call.fresh(size) for axis, size in pairs])


@mutant(select)
@mutant(index)
@mutant(index_select)
@mutant(gather)
def _what_is_found_is_zero(call: Call) -> Label:
    name = str(call.operator).split(".")[1]
    right = {"select": select, "index": index, "index_select": index_select, "gather": gather}
    found = right[name](call)
    assert isinstance(found, Label)
    return call.label(found.axes, [True] * len(found.axes))


@mutant(index)
def _index_stays_in_its_place(call: Call) -> Label:
    right = index(call)
    return call.label(right.axes[::-1], right.zero[::-1])


@mutant(nonzero)
def _found_whatever_there_is(call: Call) -> Label:
    return call.opaque(0)


@mutant(by_value)
def _takes_part_of_it(call: Call) -> list[Label]:
    given = next(x for x in call.arguments.values() if isinstance(x, Label))
    pairs = zip(given.axes[-1:] * len(call.shapes), call.shapes, strict=True)
    return [
        call.label([axis if axis.size == size else call.fresh(size) for size in shape], output=output)
        for output, (axis, shape) in enumerate(pairs)
    ]
