"""Follow axes through diagonals and triangles, which compare positions of two dimensions: both are pinned."""

from __future__ import annotations

import torch

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample
from niwaki.rules.views import arrange, free, zeros_of

aten = torch.ops.aten


@nonnegative("self")
@homogeneous("self")
@rule(aten.diagonal.default)
def diagonal(call: Call) -> Label:
    """Entries at equal positions of two dimensions."""
    x: Label = call["self"]
    pair = {call["dim1"] % len(x.axes), call["dim2"] % len(x.axes)}
    for dim in pair:
        call.pin(x.axes[dim], "its diagonal is taken")
    rest = [dim for dim in range(len(x.axes)) if dim not in pair]
    taken = call.fixed(call.shapes[0][-1], "it is a diagonal")
    return call.label((*(x.axes[dim] for dim in rest), taken), (*(x.zero[dim] for dim in rest), False), x.weight)


@nonnegative("self")
@homogeneous("self")
@rule(aten.diag_embed.default)
def diag_embed(call: Call) -> Label:
    """The last dimension becomes the diagonal of two."""
    x, rank = call["self"], len(call.shapes[0])
    call.pin(x.axes[-1], "it becomes a diagonal")
    pair = {call["dim1"] % rank, call["dim2"] % rank}
    rest = iter(range(rank - 2))
    order = [None if dim in pair else next(rest) for dim in range(rank)]
    axes = [call.fixed(size) if i is None else x.axes[i] for i, size in zip(order, call.shapes[0], strict=True)]
    return call.label(axes, [i is not None and x.zero[i] for i in order], x.weight)


@nonnegative("self")
@homogeneous("self")
@rule(aten.tril.default, aten.tril_.default, aten.triu.default, aten.triu_.default)
def triangle(call: Call) -> Label:
    """Positions of the last two dimensions are compared."""
    x: Label = call["self"]
    for axis in x.axes[-2:]:
        call.pin(axis, "a triangle of it is taken")
    return call.label(x.axes, x.zero)


for _bent in (False, True):
    sample(diagonal)(arrange(lambda x: x.diagonal(0, 1, -1), _bent))
    sample(diag_embed)(arrange(lambda x: x.squeeze(2).diag_embed(0, 0, 2), _bent))
    sample(triangle)(arrange(lambda x: x.permute(0, 2, 1, 3).tril(), _bent))
for _right in (diagonal, diag_embed, triangle):
    mutant(_right)(zeros_of(_right))
mutant(diagonal)(free)
mutant(diag_embed)(free)


@mutant(triangle)
def _triangle_of_free_rows(call: Call) -> Label:
    return call.label(call["self"].axes)
