"""Follow axes through grouped matrix products, as in layers of experts: each row is multiplied by its expert's
matrix."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.core.numbers import Combination, Literal
from niwaki.rules.axis import Axis
from niwaki.rules.call import Call, Refused
from niwaki.rules.label import Label
from niwaki.rules.pointwise import broadcast
from niwaki.rules.registry import mutant, named, rule, sample

aten = torch.ops.aten


@rule(aten._grouped_mm.default)
def grouped_mm(call: Call) -> Label:
    """Rows [s, k], sorted by expert, times the matrix [e, k, n] of the expert they were sent to."""
    a, b = call["self"], call["mat2"]
    if len(a.axes) != 2 or len(b.axes) != 3:
        raise Refused("niwaki does not follow a grouped product of this form")
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
    why = "rows are sent to experts by index, and a router with fewer experts would choose others"
    call.pin(a.axes[0], why)
    call.inexact(b.axes[0], why)
    call.equate(b.axes[0], call["offs"].axes[0])
    call.contract(a, 1, b, 1)
    call.macs(1, a.axes[0], a.axes[1], b.axes[2])
    return call.label((a.axes[0], b.axes[2]), (a.zero[0], b.zero[2]), a.weight and b.weight)


def _aligned(call: Call, dtype: torch.dtype, axis: Axis) -> None:
    """The kernel reads 16 bytes at once. The network may run in a narrower type later, so a dimension that is a
    multiple for a type of two bytes stays one."""
    bytes_each = 2 if axis.size % 8 == 0 else dtype.itemsize
    entries = 16 // bytes_each
    if axis.size % entries == 0:
        where = ("mat2", 1 if axis is call["mat2"].axes[1] else 2)
        remainder = Combination("%", call.size_of(*where), Literal(entries), 0)
        call.size_is(remainder, call.fixed(0), f"the kernel of {call.operator}, which takes {entries} entries at once,")


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


sample(grouped_mm)(lambda: _Experts(transposed=False))
sample(grouped_mm)(lambda: _Experts(transposed=True))
sample(grouped_mm)(lambda: _Experts(transposed=False, bent=True))
sample(grouped_mm)(lambda: _Experts(transposed=False, given=True))


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
