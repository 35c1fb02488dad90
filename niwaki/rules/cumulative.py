"""Follow axes through running sums, products and extremes: each entry depends on those before it."""

from __future__ import annotations

import torch

from niwaki.rules.activations import entry_by_entry, keeps_zeros, softmax
from niwaki.rules.call import Call
from niwaki.rules.indexing_read import BesideProduct
from niwaki.rules.label import Label
from niwaki.rules.reductions import over
from niwaki.rules.registry import mutant, nonnegative, rule, sample

aten = torch.ops.aten

# Entries along the dimension depend on one another, as in a softmax.
rule(aten.cumprod.default, aten.logcumsumexp.default)(softmax)
nonnegative("self", of=(aten.cumprod.default,))(softmax)


@nonnegative("self")
@rule(aten.cumsum.default, aten.cumsum_.default)
def cumsum(call: Call) -> Label:
    """A running sum: a removed position holds the sum before it, which is not zero."""
    x: Label = call["self"]
    zero = list(x.zero)
    if x.axes:
        call.inexact(x.axes[call["dim"]], "a running sum goes over this dimension")
        zero[call["dim"]] = False
    return call.label(x.axes, zero, x.weight)


@rule(aten.cummax.default, aten.cummin.default)
def cummax(call: Call) -> list[Label]:
    """The largest entry so far, and its position."""
    x, dim = call["self"], call["dim"]
    call.pin(x.axes[dim], "a running extreme goes over this dimension")
    zero = [i != dim % len(x.axes) and flag for i, flag in enumerate(x.zero)]
    return [call.label(x.axes, zero), call.label(x.axes, output=1)]


for _bent in (False, True):
    sample(softmax)(over(lambda x: x.cumprod(1), _bent))
    sample(cumsum)(over(lambda x: x.cumsum(1), _bent))
sample(cummax)(lambda: BesideProduct(lambda a, b, c: (a * c).cummax(1)[0]))
sample(cummax)(lambda: BesideProduct(lambda a, b, c: a.sigmoid().cummin(0)[0]))

mutant(cumsum)(entry_by_entry)
mutant(cumsum)(keeps_zeros)


@mutant(cummax)
def _in_any_order(call: Call) -> list[Label]:
    return [call.label(call["self"].axes, output=output) for output in (0, 1)]


@mutant(cummax)
def _largest_are_zero(call: Call) -> list[Label]:
    return [call.label(x.axes, (True, True), output=output) for output, x in enumerate(cummax(call))]
