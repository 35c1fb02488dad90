"""What is found, ordered or chosen by value: where things end up is known only when the values are."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.pointwise import broadcast
from niwaki.rules.registry import Call, Label, mutant, rule, sample

aten = torch.ops.aten


@rule(
    aten._is_all_true.default,
    aten._is_any_true.default,
    aten._unique2.default,
    aten.bernoulli.Tensor,
    aten.equal.default,
    aten.masked_select.default,
    aten.multinomial.default,
    aten.repeat_interleave.Tensor,
    aten.take.default,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
)
def by_value(call: Call) -> list[Label]:
    """All that goes in stays, and nothing of what comes out can be told to belong to it."""
    why = f"{call.operator} arranges it by value"
    for given in call.arguments.values():
        for axis in given.axes if isinstance(given, Label) else ():
            call.pin(axis, why)
    return [call.opaque(output, why) for output in range(len(call.shapes))]


@rule(aten.bucketize.Tensor, aten.isin.Tensor_Tensor)
def membership(call: Call) -> Label:
    """Entry by entry, where it lies among the entries of another tensor."""
    names = ("elements", "test_elements") if "elements" in call.arguments else ("self", "boundaries")
    x, among = call[names[0]], call[names[1]]
    for axis in among.axes:
        call.pin(axis, "others are sought among its entries")
    return call.label(x.axes)


@rule(aten.searchsorted.Tensor)
def search(call: Call) -> Label:
    """As `membership`, row by row."""
    x, among = call["self"], call["sorted_sequence"]
    call.pin(among.axes[-1], "others are sought among its entries")
    for ours, theirs in zip(x.axes[:-1], among.axes[:-1], strict=False):
        call.equate(ours, theirs)
    return call.label(x.axes)


@rule(aten.masked_scatter.default, aten.masked_scatter_.default)
def masked_scatter(call: Call) -> Label:
    """Where the mask is true entries come from ``source``, one after the other. If the mask says the same all along the
    last dimension, whole rows do, and the rows may get shorter."""
    x, mask, source = call["self"], call["mask"], call["source"]
    alike = mask.shape[-1:] == (1,) or mask.uniform[-1:] == (True,)
    rows = alike and source.shape[-1:] == x.shape[-1:]
    broadcast(call, [x, mask])
    whole = -1 if rows else None
    for axis in (*x.axes[:whole], *mask.axes[:whole], *source.axes[:whole]):
        call.pin(axis, "entries are chosen by a mask")
    if rows:
        call.equate(x.axes[-1], source.axes[-1])
    return call.label(x.axes, [rows and x.zero[-1] and source.zero[-1] and axis is x.axes[-1] for axis in x.axes])


@rule(aten.cummax.default, aten.cummin.default)
def running(call: Call) -> list[Label]:
    """The largest so far, and where it was."""
    x, dim = call["self"], call["dim"]
    call.pin(x.axes[dim], "it is gone through in order")
    zero = [i != dim % len(x.axes) and flag for i, flag in enumerate(x.zero)]
    return [call.label(x.axes, zero), call.label(x.axes, output=1)]


class _Of(nn.Module):
    """A function of parameters [4, 6], [4, 3] and [6], and a product that may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 6), (4, 3), (6,)))
        self.d, self.function = nn.Parameter(torch.randn(6, 5)), function

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.function(self.a, self.b, self.c), torch.relu(self.d) @ self.d.detach().mT


def _sought(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.bucketize(b, torch.sort(c.cos())[0]) * 1.0 + b


def _sought_by_row(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.searchsorted(a, b) * 1.0


def _known(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.isin(b.relu().ceil(), (-99 * c.abs()).exp().round()) * 1.0 + b  # a zero is a one, the rest are zeros


class _Merged(nn.Module):
    """Some rows of [4, 6] are replaced by those of another tensor, as image features replace their placeholders."""

    def __init__(self, bent: str = "", rows: bool = True, in_place: bool = False) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(3, 6))
        self.where = torch.tensor([[True, False, True, True]]).T
        self.bent, self.rows, self.in_place, self.width = bent, rows, in_place, 6

    def forward(self) -> Tensor:
        a, b = (x.sigmoid() if name in self.bent else x * 2 for name, x in (("a", self.a), ("b", self.b)))
        mask = self.where.expand(-1, self.width) if self.rows else torch.ones_like(a) > 0.5
        return a.masked_scatter_(mask, b) if self.in_place else a.masked_scatter(mask, b if self.rows else a.cos())


sample(by_value)(lambda: _Of(lambda a, b, c: torch.unique(c.cos(), return_inverse=True)[1] + c))
sample(by_value)(lambda: _Of(lambda a, b, c: a.masked_select(torch.tensor([True, False] * 3)) + c[0]))
sample(by_value)(lambda: _Of(lambda a, b, c: a.take(torch.tensor([1, 9, 5])) + b))
sample(membership)(lambda: _Of(_sought))
sample(membership)(lambda: _Of(_known))
sample(search)(lambda: _Of(_sought_by_row))
sample(masked_scatter)(_Merged)
sample(masked_scatter)(lambda: _Merged("a"))
sample(masked_scatter)(lambda: _Merged("b"))
sample(masked_scatter)(lambda: _Merged("ab", in_place=True))
sample(masked_scatter)(lambda: _Merged(in_place=True))
sample(masked_scatter)(lambda: _Merged(rows=False))
sample(running)(lambda: _Of(lambda a, b, c: (a * c).cummax(1)[0]))
sample(running)(lambda: _Of(lambda a, b, c: a.sigmoid().cummin(0)[0]))


@mutant(by_value)
def _takes_part_of_it(call: Call) -> list[Label]:
    given = next(x for x in call.arguments.values() if isinstance(x, Label))
    pairs = zip(given.axes[-1:] * len(call.shapes), call.shapes, strict=True)
    return [
        call.label([axis if axis.size == size else call.fresh(size) for size in shape], output=output)
        for output, (axis, shape) in enumerate(pairs)
    ]


@mutant(membership)
def _boundaries_are_free(call: Call) -> Label:
    return call.label(call["self" if "self" in call.arguments else "elements"].axes)


@mutant(membership)
def _places_are_zero(call: Call) -> Label:
    axes = membership(call).axes
    return call.label(axes, [True] * len(axes))


@mutant(search)
def _rows_are_free(call: Call) -> Label:
    return call.label(call["self"].axes)


@mutant(masked_scatter)
def _any_entry_may_go(call: Call) -> Label:
    call.equate(call["self"].axes[-1], call["source"].axes[-1])
    return call.label(call["self"].axes)


@mutant(masked_scatter)
def _keeps_its_zeros(call: Call) -> Label:
    x: Label = call["self"]
    return call.label(x.axes, (False, x.zero[1] or masked_scatter(call).zero[1]))


@mutant(running)
def _in_any_order(call: Call) -> list[Label]:
    return [call.label(call["self"].axes, output=output) for output in (0, 1)]


@mutant(running)
def _largest_are_zero(call: Call) -> list[Label]:
    return [call.label(x.axes, (True, True), output=output) for output, x in enumerate(running(call))]
