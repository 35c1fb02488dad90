"""Distances: sums over what two tensors differ by. Where both are zero they differ by nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten


@rule(aten._cdist_forward.default, aten._euclidean_dist.default)
def distances(call: Call) -> Label:
    """Between the rows of [.., p, k] and those of [.., r, k]: [.., p, r]."""
    a, b = call["x1"], call["x2"]
    call.equate(a.axes[-1], b.axes[-1])
    if not (a.zero[-1] and b.zero[-1]):
        for axis in (a.axes[-1], b.axes[-1]):
            call.pin(axis, "a distance runs over it, and its removed entries are not zero")
    for x, other in ((a, b), (b, a)):
        if x.weight:
            call.reads(x, len(x.axes) - 1, other.zero[-1])
            call.drives(x, len(x.axes) - 1)  # also where the other is zero: it is subtracted from, not multiplied
    lead = []
    for size, ours, theirs in zip(call.shapes[0][:-2], a.axes[:-2], b.axes[:-2], strict=True):
        if ours.size == theirs.size:
            call.equate(ours, theirs)
        lead.append(ours if ours.size == size else theirs)
    return call.label((*lead, a.axes[-2], b.axes[-2]))


@rule(aten.dist.default)
def distance(call: Call) -> Label:
    """Between two tensors, of which the shapes are broadcast: a number."""
    for operand in (call["self"], call["other"]):
        for axis in operand.axes:
            call.pin(axis, "a distance runs over it")
    return call.label(())


class _Between(nn.Module):
    """A function of parameters [2, 4, 6] and [2, 5, 6], of which one, both or none are bent away from zero; and a
    product that may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *bent: str) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 4, 6)), nn.Parameter(torch.randn(2, 5, 6))
        self.c, self.d = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2))
        self.function, self.bent = function, bent

    def forward(self) -> tuple[Tensor, Tensor]:
        a = self.a.sigmoid() if "a" in self.bent else self.a
        return self.function(a, self.b.cos() if "b" in self.bent else self.b), self.c.relu() @ self.d


sample(distances)(lambda: _Between(torch.cdist))
sample(distances)(lambda: _Between(torch.cdist, "a"))
sample(distances)(lambda: _Between(torch.cdist, "b"))
sample(distances)(lambda: _Between(torch.cdist, "a", "b"))
sample(distances)(lambda: _Between(lambda a, b: torch.cdist(a, b, p=1.0)))
sample(distance)(lambda: _Between(lambda a, b: torch.dist(a, b[:, :4]) * b, "a"))
sample(distance)(lambda: _Between(lambda a, b: torch.dist(b[:, :4].cos(), a) * b))


@mutant(distances)
def _distance_over_anything(call: Call) -> Label:
    a, b = call["x1"], call["x2"]
    call.equate(a.axes[-1], b.axes[-1])
    call.equate(a.axes[0], b.axes[0])
    return call.label((a.axes[0], a.axes[1], b.axes[1]))


@mutant(distances)
def _distances_are_zero(call: Call) -> Label:
    axes = distances(call).axes
    return call.label(axes, [True] * len(axes))


@mutant(distance)
def _free(call: Call) -> Label:
    return call.label(())
