"""Follow axes through turning: their positions come in another order."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from niwaki.rules.axis import concatenate
from niwaki.rules.call import Call
from niwaki.rules.joining import TwoLayers
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample
from niwaki.rules.views import arrange, free, zeros_of

aten = torch.ops.aten


@nonnegative("self")
@homogeneous("self")
@rule(aten.flip.default)
def flip(call: Call) -> Label:
    """Reversed dimensions."""
    x: Label = call["self"]
    dims = {dim % len(x.axes) for dim in call["dims"]}
    axes = [axis.take(slice(None, None, -1)) if i in dims else axis for i, axis in enumerate(x.axes)]
    return call.label(axes, x.zero, x.weight)


@nonnegative("self")
@homogeneous("self")
@rule(aten.roll.default)
def roll(call: Call) -> Label:
    """Rotated dimensions: after a cut the rotation would be another."""
    x: Label = call["self"]
    for dim in call["dims"] or range(len(x.axes)):
        call.pin(x.axes[dim], "it is rotated by a given number of positions")
    return call.label(x.axes, x.zero, x.weight)


@homogeneous("self", whole=True)
@rule(aten.rot90.default)
def rot90(call: Call) -> Label:
    """Two dimensions turned by k quarters: (i, j) goes to (n - 1 - j, i) once."""
    x: Label = call["self"]
    axes, zero = list(x.axes), list(x.zero)
    a, b = (dim % len(axes) for dim in call["dims"])
    for _ in range(call["k"] % 4):
        axes[a], axes[b] = axes[b].take(slice(None, None, -1)), axes[a]
        zero[a], zero[b] = zero[b], zero[a]
    return call.label(axes, zero, x.weight)


def _turned(quarters: int) -> Callable[[Tensor], Tensor]:
    return lambda x: torch.rot90(x, quarters, (1, -1)) * x.amax(1, True)


sample(flip)(lambda: TwoLayers(lambda a, b, c: a.flip(1).sigmoid() * b[0]))
sample(roll)(lambda: TwoLayers(lambda a, b, c: a.roll(2, 1)))
for _bent in (False, True):
    for _quarters in (1, 2, -1):
        sample(rot90)(arrange(_turned(_quarters), _bent))


@mutant(flip)
@mutant(roll)
def _unturned(call: Call) -> Label:
    return call.label(call["self"].axes)


@mutant(roll)
def _rolled_as_traced(call: Call) -> Label:
    x, shift = call["self"], call["shifts"][0]
    return call.label((x.axes[0], concatenate([x.axes[1].take(slice(-shift, None)), x.axes[1].take(slice(-shift))])))


mutant(rot90)(free)
mutant(rot90)(zeros_of(rot90))


@mutant(rot90)
def _the_other_way_round(call: Call) -> Label:
    right = rot90(call)
    return call.label([axis.take(slice(None, None, -1)) for axis in right.axes], right.zero)
