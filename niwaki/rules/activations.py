"""Follow axes through activations that are not element-wise: softmax and the gated linear unit (GLU)."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.rules.call import Call
from niwaki.rules.identity import Handed
from niwaki.rules.joining import cut_out
from niwaki.rules.label import Label
from niwaki.rules.reductions import over
from niwaki.rules.registry import mutant, nonnegative, rule, sample
from niwaki.rules.zeros import lift

aten = torch.ops.aten


@lift(of=(aten._softmax.default,))
@nonnegative(of=(aten._softmax.default, aten._safe_softmax.default))
@rule(aten._softmax.default, aten._log_softmax.default, aten._safe_softmax.default)
def softmax(call: Call) -> Label:
    """Entries along ``dim`` depend on one another."""
    x: Label = call["self"]
    if x.axes:
        call.inexact(
            x.axes[call["dim"]], f"{call.operator} makes all entries along this dimension depend on one another"
        )
    return call.label(x.axes)


@rule(aten.glu.default)
def glu(call: Call) -> Label:
    """First half times sigmoid of second half."""
    x, dim = call["self"], call["dim"] % len(call["self"].axes)
    half = x.axes[dim].size // 2
    first, second = x.axes[dim].take(slice(None, half)), x.axes[dim].take(slice(half, None))
    call.equate(first, second)
    return cut_out(call, x, dim, first if first.free else second)


for _bent in (False, True):
    sample(softmax)(over(lambda x: x.softmax(2), _bent))
sample(glu)(lambda: Handed(lambda x: nn.functional.glu(x, 1)))


@mutant(softmax)
def entry_by_entry(call: Call) -> Label:
    """Entries do not depend on one another: wrong along the softmax's dimension."""
    return call.label(call["self"].axes)


@mutant(softmax)
def keeps_zeros(call: Call) -> Label:
    """Zeros stay zero: wrong where entries depend on others."""
    x: Label = call["self"]
    call.pin(x.axes[call["dim"]], "")
    return call.label(x.axes, [True] * len(x.axes))


@mutant(glu)
def _first_half_only(call: Call) -> Label:
    return cut_out(call, call["self"], 1, call["self"].axes[1].take(slice(None, call.shapes[0][1])))


@mutant(glu)
def _glu_of_neighbours(call: Call) -> Label:
    axis = call["self"].axes[1]
    even, odd = axis.take(slice(0, None, 2)), axis.take(slice(1, None, 2))
    call.equate(even, odd)
    return cut_out(call, call["self"], 1, even)
