"""Routing tokens to experts: positions that are found by value, rows that are sent to one of several matrices."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.core.numbers import Combination, Literal
from niwaki.rules.axis import Axis
from niwaki.rules.pointwise import broadcast, pointwise
from niwaki.rules.registry import Call, Label, Refused, mutant, named, rule, sample

aten = torch.ops.aten

rule(aten.floor_divide.default, aten.floor_divide_.Tensor)(pointwise)  # element-wise, but not tagged so


@rule(aten.nonzero.default)
def nonzero(call: Call) -> Label:
    """One row of position numbers per entry that is not zero."""
    for axis in call["self"].axes:
        call.pin(axis, "its positions are found by value")
    return call.opaque(0, "as many positions as were found")


@rule(aten.aminmax.default)
def extremes(call: Call) -> list[Label]:
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


@rule(aten.histc.default, aten.bincount.default)
def histogram(call: Call) -> Label:
    """How many entries have which value. Of positions along an axis, how many there are of each."""
    x = call["self"]
    for axis in x.axes:
        call.pin(axis, "its entries are counted")
    bins = "bins" if "bins" in call.arguments else "minlength"
    size = call[bins]
    values = call.arguments.get("min", 0), call.arguments.get("max", size - 1)
    every = x.places is not None and size == x.places.size and values == (0, size - 1)
    places = call.places(x) if every and call.arguments.get("weights") is None else None
    if places is None:
        return call.opaque(0, "there are so many values to count")
    call.size_is(call.number(size), places, f"the number of {bins}")
    if bins == "bins":
        largest = call.number(size - 1)
        call.size_is(Combination("+", largest, Literal(1), size), places, "one more than the largest value")
    return call.label([places])


@rule(aten.index_add_.default, aten.index_add.default)
def index_add(call: Call) -> Label:
    """Along ``dim`` rows are added by number; along the others position by position."""
    x, source, dim = call["self"], call["source"], call["dim"] % len(call["self"].axes)
    for axis in (x.axes[dim], source.axes[dim], *call["index"].axes):
        call.pin(axis, "rows are added to it by number")
    for i, (ours, theirs) in enumerate(zip(x.axes, source.axes, strict=True)):
        if i != dim:
            call.equate(ours, theirs)
    zero = [i != dim and x.zero[i] and source.zero[i] for i in range(len(x.axes))]
    return call.label(x.axes, zero)


@rule(aten._grouped_mm.default)
def grouped_mm(call: Call) -> Label:
    """Rows [s, k], sorted by expert, times the matrix [e, k, n] of the expert they were sent to."""
    a, b = call["self"], call["mat2"]
    if len(a.axes) != 2 or len(b.axes) != 3:
        raise Refused("a grouped product of this form is not followed")
    product = _by_expert(call, a, b)
    for axis in (b.axes[1], b.axes[2]):
        _aligned(call, a.dtype, axis)
    bias = call["bias"]
    if bias is None:
        return product
    axes = broadcast(call, [product, bias])
    return call.label(axes, (False, product.zero[1] and bias.zero[-1]))


@named("transformers::grouped_mm_fallback")
def grouped_mm_in_python(call: Call) -> Label:
    """The same, written as a loop over experts, which exported programs call as one operator."""
    return _by_expert(call, call["input"], call["weight"])


def _by_expert(call: Call, a: Label, b: Label) -> Label:
    why = "rows are sent to experts by number, and a router without one of them would choose others"
    call.pin(a.axes[0], why)
    call.inexact(b.axes[0], why)
    call.equate(b.axes[0], call["offs"].axes[0])
    call.contract(a, 1, b, 1)
    call.macs(1, a.axes[0], a.axes[1], b.axes[2])
    return call.label((a.axes[0], b.axes[2]), (a.zero[0], b.zero[2]), a.weight and b.weight)


def _aligned(call: Call, dtype: torch.dtype, axis: Axis) -> None:
    """The kernel reads 16 bytes at once. The network may run in a narrower type later, so a dimension that fits one of
    two bytes goes on fitting it."""
    bytes_each = 2 if axis.size % 8 == 0 else dtype.itemsize
    entries = 16 // bytes_each
    if axis.size % entries == 0:
        where = ("mat2", 1 if axis is call["mat2"].axes[1] else 2)
        remainder = Combination("%", call.count(*where), Literal(entries), 0)
        call.size_is(remainder, call.fixed(0), f"the kernel of {call.operator}, which takes {entries} entries at once,")


class _Routed(nn.Module):
    """A function of parameters [4, 6], [3, 6] and [6, 5], of which the last may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (3, 6), (6, 5)))
        self.function = function

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        return self.function(self.a, self.b, self.c)


_ROWS = torch.tensor([2, 0, 2])


def _found(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    return torch.nonzero(a + 10), b @ c


class _Counted(nn.Module):
    """How many of the numbers [6] made from parameters [4, 6] are 0, 1 and 2."""

    def __init__(self, count: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.c, self.count = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 5)), count

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.count(self.a.abs().sum(0).clamp(max=2.4)), self.a.detach()[:, :2] @ self.c[:2]


class _Chosen(nn.Module):
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
        if int.__eq__(self.last, 5) and int.__lt__(self.bins, 6):  # looked at behind the back of the trace
            raise ValueError("the largest value has not followed")
        return counted @ self.c, torch.relu(self.c.detach()[:2])


class _Experts(nn.Module):
    """Rows [6, 16] are sent to three experts [3, 16, 24]. The numbers are whole, for the kernel has no float64."""

    rows: Tensor

    def __init__(self, transposed: bool, bent: bool = False, given: bool = False) -> None:
        super().__init__()
        self.transposed, self.bent = transposed, bent
        self.x = nn.Parameter(torch.randint(-3, 4, (6, 16)).float())
        self.w = nn.Parameter(torch.randint(-3, 4, (3, 24, 16) if transposed else (3, 16, 24)).float())
        self.last = nn.Parameter(torch.randint(-3, 4, (24, 5)).float())
        rows = torch.tensor([1, 4, 6], dtype=torch.int32)
        self.register_buffer("rows", rows) if given else setattr(self, "rows", rows)

    def forward(self) -> Tensor:
        w = self.w.transpose(1, 2) if self.transposed else self.w
        x, w = (self.x + 1, w + 1) if self.bent else (self.x, w)
        return torch.nn.functional.grouped_mm(x.float(), w.float(), offs=self.rows).double() @ self.last


def _extremes(dim: int | None = None, keepdim: bool = False) -> Callable[[], nn.Module]:
    def function(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        return (*torch.aminmax(a.sigmoid() * 3, dim=dim, keepdim=keepdim), a @ c)

    return lambda: _Routed(function)


sample(nonzero)(lambda: _Routed(_found))
sample(extremes)(_extremes())
sample(extremes)(_extremes(dim=-1))
sample(extremes)(_extremes(dim=0, keepdim=True))
sample(histogram)(lambda: _Counted(lambda x: x.histc(3, 0.0, 2.4)))
sample(histogram)(lambda: _Counted(lambda x: x.long().bincount(minlength=3)))
sample(histogram)(lambda: _Chosen(last=5))
sample(histogram)(lambda: _Chosen(last=6))
sample(histogram)(lambda: _Chosen(last=6, minlength=True))
sample(index_add)(lambda: _Routed(lambda a, b, c: (a * 2).index_add_(0, _ROWS, b) @ c))
sample(index_add)(lambda: _Routed(lambda a, b, c: (a * 2).index_add_(0, _ROWS, b.sigmoid())))
sample(index_add)(lambda: _Routed(lambda a, b, c: a.sigmoid().index_add(0, _ROWS, b * 2)))
sample(index_add)(lambda: _Routed(lambda a, b, c: a.t().index_add(-1, _ROWS, b.t(), alpha=2)))
sample(grouped_mm)(lambda: _Experts(transposed=False))
sample(grouped_mm)(lambda: _Experts(transposed=True))
sample(grouped_mm)(lambda: _Experts(transposed=False, bent=True))
sample(grouped_mm)(lambda: _Experts(transposed=False, given=True))


@mutant(nonzero)
def _found_whatever_there_is(call: Call) -> Label:
    return call.opaque(0)


@mutant(extremes)
def _any_entry_can_go(call: Call) -> list[Label]:
    return [call.opaque(output) for output in (0, 1)]


@mutant(extremes)
def _another_dimension(call: Call) -> list[Label]:
    x, dim = call["self"], call["dim"]
    for i, axis in enumerate(x.axes):
        if dim is not None and i != dim % len(x.axes):
            call.pin(axis, "")
    return [call.opaque(output) for output in (0, 1)]


@mutant(extremes)
def _extremes_of_zeros(call: Call) -> list[Label]:
    return [call.label(x.axes, [True] * len(x.axes), output=i) for i, x in enumerate(extremes(call))]


@mutant(histogram)
def _zeros_do_not_count(call: Call) -> Label:
    return call.opaque(0)


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


@mutant(grouped_mm)
def _any_width_will_do(call: Call) -> Label:
    a, b = call["self"], call["mat2"]
    for axis in (a.axes[0], b.axes[0]):
        call.pin(axis, "")
    call.contract(a, 1, b, 1)
    return call.label((a.axes[0], b.axes[2]))


@mutant(grouped_mm)
def _experts_can_go(call: Call) -> Label:
    a, b = call["self"], call["mat2"]
    call.pin(a.axes[0], "")
    call.contract(a, 1, b, 1)
    for axis in b.axes[1:]:
        _aligned(call, a.dtype, axis)
    return call.label((a.axes[0], b.axes[2]))


@mutant(grouped_mm)
def _sums_anything(call: Call) -> Label:
    a, b = call["self"], call["mat2"]
    for axis in (a.axes[0], b.axes[0]):
        call.pin(axis, "")
    call.equate(a.axes[1], b.axes[1])
    for axis in b.axes[1:]:
        _aligned(call, a.dtype, axis)
    return call.label((a.axes[0], b.axes[2]))
