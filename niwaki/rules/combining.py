"""Concatenating, stacking, repeating, padding, and taking apart again."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.core.numbers import Combination, Expression, Literal
from niwaki.rules.axis import Axis, concatenate
from niwaki.rules.registry import Call, Label, Refused, mutant, rule, sample

aten = torch.ops.aten


@rule(aten.cat.default)
def cat(call: Call) -> Label:
    """One after the other along ``dim``."""
    tensors = [x for x in call["tensors"] if x.shape != (0,)]
    dim = call["dim"] % len(tensors[0].axes)
    axes = []
    for i in range(len(tensors[0].axes)):
        along = [x.axes[i] for x in tensors]
        if i == dim:
            axes.append(concatenate(along))
            continue
        chosen = next((axis for axis in along if axis.free), along[0])
        for axis in along:
            call.equate(chosen, axis)
        axes.append(chosen)
    zero = [all(x.zero[i] or not x.axes[i].free for x in tensors) for i in range(len(axes))]
    return call.label(axes, zero, all(x.weight for x in tensors))


@rule(aten.stack.default)
def stack(call: Call) -> Label:
    """A new dimension, of which nothing can go: the number of tensors is written in Python."""
    tensors = call["tensors"]
    axes = list(tensors[0].axes)
    for x in tensors[1:]:
        for ours, theirs in zip(axes, x.axes, strict=True):
            call.equate(ours, theirs)
    zero = [all(x.zero[i] for x in tensors) for i in range(len(axes))]
    dim = call["dim"] % (len(axes) + 1)
    axes.insert(dim, call.fixed(len(tensors), "so many tensors are stacked"))
    zero.insert(dim, False)
    return call.label(axes, zero, all(x.weight for x in tensors))


@rule(aten.split.Tensor)
def split(call: Call) -> list[Label]:
    """Equal parts, the last one perhaps smaller. ``chunk`` computes their size from the length; ``split`` is told it."""
    x, dim, size = call["self"], call["dim"] % len(call["self"].axes), call["split_size"]
    length = x.axes[dim].size
    parts = [x.axes[dim].take(slice(start, start + size)) for start in range(0, length, size)]
    if call.python.function in (torch.chunk, torch.Tensor.chunk):
        given = _divided_up(call.count("self", dim), len(parts))
    else:
        given = call.number(size)
    for part in parts if length % size == 0 else parts[:-1]:
        call.size_is(given, part, "the size of a split")
    return [_cut_out(call, x, dim, part, output) for output, part in enumerate(parts)]


def _divided_up(number: Expression, parts: int) -> Expression:
    """``number / parts``, rounded up."""
    minus = Combination("*", number, Literal(-1), -number.value)
    floor = Combination("//", minus, Literal(parts), -number.value // parts)
    return Combination("*", floor, Literal(-1), -floor.value)


@rule(aten.split_with_sizes.default)
def split_with_sizes(call: Call) -> list[Label]:
    """Parts of given sizes."""
    x, dim, start, parts = call["self"], call["dim"], 0, []
    for size in call["split_sizes"]:
        parts.append(x.axes[dim].take(slice(start, start + size)))
        start += size
    for expression, part in zip(call.sizes(call["split_sizes"]), parts, strict=True):
        if expression is None:
            call.pin(part, "niwaki cannot see where the size of this split comes from")
        call.size_is(expression, part, "the size of a split")
    return [_cut_out(call, x, dim, part, output) for output, part in enumerate(parts)]


def _cut_out(call: Call, x: Label, dim: int, part: Axis, output: int = 0) -> Label:
    axes = list(x.axes)
    axes[dim] = part
    return call.label(axes, x.zero, x.weight, output)


@rule(aten.unbind.int)
def unbind(call: Call) -> list[Label]:
    """One tensor per position of ``dim``: their number is written in Python."""
    x, dim = call["self"], call["dim"] % len(call["self"].axes)
    call.pin(x.axes[dim], "it is unbound into separate tensors")
    rest = [i for i in range(len(x.axes)) if i != dim]
    return [
        call.label([x.axes[i] for i in rest], [x.zero[i] for i in rest], x.weight, output)
        for output in range(len(call.shapes))
    ]


@rule(aten.repeat.default)
def repeat(call: Call) -> Label:
    """Whole dimensions one after the other; the copies of a position live and die together. A repeated dimension of
    size 1 gives copies that may go on their own, if the number of copies can follow."""
    x: Label = call["self"]
    lead = len(call["repeats"]) - len(x.axes)
    expressions = call.sizes(call["repeats"])
    axes, zero = [], []
    for i, times in enumerate(call["repeats"]):
        old = x.axes[i - lead] if i >= lead else None
        if times == 1 and old is not None:
            axis = old
        elif old is None or old.size == 1:
            axis = call.fresh(times)
            if expressions[i] is None:
                call.pin(axis, "niwaki cannot see where the number of copies comes from")
            call.size_is(expressions[i], axis, "a number of copies")
        else:
            axis = concatenate([old] * times)
            call.size_is(expressions[i], call.fixed(times), "a number of copies")
        axes.append(axis)
        zero.append(old is not None and old.size != 1 and x.zero[i - lead])
    return call.label(axes, zero, x.weight)


@rule(aten.constant_pad_nd.default)
def pad(call: Call) -> Label:
    """New positions at both ends, which stay."""
    x: Label = call["self"]
    axes = list(x.axes)
    for i in range(len(call["pad"]) // 2):
        before, after = call["pad"][2 * i : 2 * i + 2]
        dim = len(axes) - 1 - i
        if before < 0 or after < 0:
            raise Refused("it is padded by a negative amount, which crops it")
        if before or after:
            why = "it is padding"
            axes[dim] = concatenate([call.fixed(before, why), axes[dim], call.fixed(after, why)])
    call.sizes(call["pad"])
    zero = [call["value"] == 0 and flag for flag in x.zero]
    return call.label(axes, zero)


@rule(aten.flip.default)
def flip(call: Call) -> Label:
    """Reversed dimensions."""
    x: Label = call["self"]
    dims = {dim % len(x.axes) for dim in call["dims"]}
    axes = [axis.take(slice(None, None, -1)) if i in dims else axis for i, axis in enumerate(x.axes)]
    return call.label(axes, x.zero, x.weight)


@rule(aten.roll.default)
def roll(call: Call) -> Label:
    """Rotated dimensions: by how far would change with a cut."""
    x: Label = call["self"]
    for dim in call["dims"] or range(len(x.axes)):
        call.pin(x.axes[dim], "it is rotated by a given number of positions")
    return call.label(x.axes, x.zero, x.weight)


@rule(aten.glu.default)
def glu(call: Call) -> Label:
    """First half times sigmoid of second half."""
    x, dim = call["self"], call["dim"] % len(call["self"].axes)
    half = x.axes[dim].size // 2
    first, second = x.axes[dim].take(slice(None, half)), x.axes[dim].take(slice(half, None))
    call.equate(first, second)
    return _cut_out(call, x, dim, first if first.free else second)


class _Two(nn.Module):
    def __init__(self, function: object) -> None:
        super().__init__()
        self.a, self.b, self.function = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5, 6)), function

    def forward(self) -> torch.Tensor:
        return self.function(self.a * 2, self.b)


class _Sized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.sizes, self.size = nn.Parameter(torch.randn(6, 5)), (2, 4), 3

    def forward(self) -> torch.Tensor:
        first, second = self.a.split(self.sizes)
        third, fourth = (self.a * 2).split(self.size)
        return torch.cat([first, second, third, fourth]) * 1.5


class _Repeat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.copies = nn.Parameter(torch.randn(1, 5)), 3

    def forward(self) -> torch.Tensor:
        return self.a.repeat(self.copies, 2)


sample(cat)(lambda: _Two(lambda a, b: torch.cat([a, b])))
sample(stack)(lambda: _Two(lambda a, b: torch.stack([a, b[:4] if len(b) == 5 else a], 1)))
sample(split)(lambda: _Two(lambda a, b: torch.cat(a.chunk(2)[::-1])))
sample(split)(_Sized)
sample(split_with_sizes)(_Sized)
sample(unbind)(lambda: _Two(lambda a, b: a.unbind(0)[1] + b))
sample(repeat)(_Repeat)
sample(pad)(lambda: _Two(lambda a, b: torch.nn.functional.pad(a, (1, 2, 0, 1))))
sample(flip)(lambda: _Two(lambda a, b: a.flip(1).sigmoid() @ b.t()))
sample(roll)(lambda: _Two(lambda a, b: a.roll(2, 1)))
sample(glu)(lambda: _Two(lambda a, b: torch.nn.functional.glu(a, 1)))


@mutant(cat)
def _cat_backwards(call: Call) -> Label:
    right = cat(call)
    axes = list(right.axes)
    axes[call["dim"]] = axes[call["dim"]].take(slice(None, None, -1))
    return call.label(axes)


@mutant(stack)
def _stack_without_tie(call: Call) -> Label:
    x = call["tensors"][0]
    axes = [axis.take(slice(None, None, -1)) for axis in x.axes]
    axes.insert(call["dim"], call.fixed(len(call["tensors"])))
    return call.label(axes)


@mutant(split)
@mutant(split_with_sizes)
def _split_without_sizes(call: Call) -> list[Label]:
    x, start, parts = call["self"], 0, []
    for output, shape in enumerate(call.shapes):
        part = x.axes[call["dim"]].take(slice(start, start + shape[call["dim"]]))
        parts.append(_cut_out(call, x, call["dim"], part, output))
        start += part.size
    call.sizes([n.value for n in call.python.numbers])
    return parts


@mutant(unbind)
def _unbind_free(call: Call) -> list[Label]:
    return [call.label(call["self"].axes[1:], output=output) for output in range(len(call.shapes))]


@mutant(repeat)
def _repeat_free(call: Call) -> Label:
    call.sizes(call["repeats"])
    return call.label([call.fresh(size) for size in call.shapes[0]])


@mutant(pad)
def _pad_at_the_end(call: Call) -> Label:
    x: Label = call["self"]
    pairs = zip(x.axes, call.shapes[0], strict=True)
    return call.label([concatenate([axis, call.fixed(size - axis.size)]) for axis, size in pairs])


@mutant(flip)
@mutant(roll)
def _unturned(call: Call) -> Label:
    return call.label(call["self"].axes)


@mutant(glu)
def _first_half_only(call: Call) -> Label:
    return _cut_out(call, call["self"], 1, call["self"].axes[1].take(slice(None, call.shapes[0][1])))
