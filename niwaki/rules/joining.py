"""Follow axes through joining, repeating, padding and splitting."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from niwaki.core.numbers import Combination, Expression, Literal
from niwaki.rules.axis import Axis, concatenate
from niwaki.rules.call import Call, Refused
from niwaki.rules.indexing_read import by_value
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample

aten = torch.ops.aten


@nonnegative("tensors")
@homogeneous("tensors")
@rule(aten.cat.default)
def cat(call: Call) -> Label:
    """One after the other along ``dim``."""
    numbered = [(place, x) for place, x in enumerate(call["tensors"]) if x.shape != (0,)] or [(0, call["tensors"][0])]
    tensors = [x for _, x in numbered]
    dim = call["dim"] % len(tensors[0].axes)
    axes = []
    for i in range(len(tensors[0].axes)):
        along = [x.axes[i] for x in tensors]
        if i == dim:
            some = any(axis.free for axis in along)
            axes.append(concatenate([call.operand(place, x.axes[i]) if some else x.axes[i] for place, x in numbered]))
            continue
        chosen = next((axis for axis in along if axis.free), along[0])
        for axis in along:
            call.equate(chosen, axis)
        axes.append(chosen)
    zero = [all(x.zero[i] or not x.axes[i].free for x in tensors) for i in range(len(axes))]
    return call.label(axes, zero, all(x.weight for x in tensors))


@nonnegative("tensors")
@homogeneous("tensors")
@rule(aten.stack.default)
def stack(call: Call) -> Label:
    """A new dimension that is pinned: the number of tensors is fixed by the Python code."""
    tensors = call["tensors"]
    axes = list(tensors[0].axes)
    for x in tensors[1:]:
        for ours, theirs in zip(axes, x.axes, strict=True):
            call.equate(ours, theirs)
    zero = [all(x.zero[i] for x in tensors) for i in range(len(axes))]
    dim = call["dim"] % (len(axes) + 1)
    axes.insert(dim, call.fixed(len(tensors), "its size is the number of stacked tensors"))
    zero.insert(dim, False)
    return call.label(axes, zero, all(x.weight for x in tensors))


@nonnegative("self")
@homogeneous("self")
@rule(aten.split.Tensor, aten.unsafe_split.Tensor)
def split(call: Call) -> list[Label]:
    """Equal parts, the last one perhaps smaller. ``chunk`` is given the number of parts; ``split`` is given a size.
    torch's own layers (the gates of a recurrent one) use the unsafe version to divide."""
    x, dim, size = call["self"], call["dim"] % len(call["self"].axes), call["split_size"]
    length = x.axes[dim].size
    parts = [x.axes[dim].take(slice(start, start + size)) for start in range(0, length, size)]
    unsafe = call.operator is aten.unsafe_split.Tensor
    if call.python.function in _CHUNK or (unsafe and call.python.function not in _UNSAFE_SPLIT):
        call.derived_by_torch("split_size")
        given = _divided_up(call.size_of("self", dim), len(parts))
    else:
        given = call.int_expr(size)
    for part in parts if length % size == 0 else parts[:-1]:
        call.size_is(given, part, "the size of a split")
    return [cut_out(call, x, dim, part, output) for output, part in enumerate(parts)]


_CHUNK = (torch.chunk, torch.Tensor.chunk, torch.unsafe_chunk, torch.Tensor.unsafe_chunk)
_UNSAFE_SPLIT = (torch.unsafe_split, torch.Tensor.unsafe_split)


def _divided_up(number: Expression, parts: int) -> Expression:
    """``number / parts``, rounded up."""
    minus = Combination("*", number, Literal(-1), -number.value)
    floor = Combination("//", minus, Literal(parts), -number.value // parts)
    return Combination("*", floor, Literal(-1), -floor.value)


@nonnegative("self")
@homogeneous("self")
@rule(aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default)
def split_with_sizes(call: Call) -> list[Label]:
    """Parts of given sizes."""
    x, dim, start, parts = call["self"], call["dim"], 0, []
    for size in call["split_sizes"]:
        parts.append(x.axes[dim].take(slice(start, start + size)))
        start += size
    for expression, part in zip(call.size_exprs(call["split_sizes"]), parts, strict=True):
        if expression is None:
            call.pin(part, "niwaki cannot see where the size of this split comes from")
        call.size_is(expression, part, "the size of a split")
    return [cut_out(call, x, dim, part, output) for output, part in enumerate(parts)]


def cut_out(call: Call, x: Label, dim: int, part: Axis, output: int = 0) -> Label:
    axes = list(x.axes)
    axes[dim] = part
    return call.label(axes, x.zero, x.weight, output)


@nonnegative("self")
@homogeneous("self")
@rule(aten.unbind.int)
def unbind(call: Call) -> list[Label]:
    """One tensor per position of ``dim``: their number is fixed by the Python code."""
    x, dim = call["self"], call["dim"] % len(call["self"].axes)
    call.pin(x.axes[dim], "it is unbound into separate tensors")
    rest = [i for i in range(len(x.axes)) if i != dim]
    return [
        call.label([x.axes[i] for i in rest], [x.zero[i] for i in rest], x.weight, output)
        for output in range(len(call.shapes))
    ]


@nonnegative("self")
@homogeneous("self")
@rule(aten.repeat.default)
def repeat(call: Call) -> Label:
    """Whole dimensions one after the other; the copies of a position are removed together. The copies of a dimension of
    size 1 may be removed one by one if the number of copies can follow."""
    x: Label = call["self"]
    lead = len(call["repeats"]) - len(x.axes)
    expressions = call.size_exprs(call["repeats"])
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
    """New positions at both ends, which are pinned."""
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
    for expression, amount in zip(call.size_exprs(call["pad"]), call["pad"], strict=True):
        call.size_is(expression, call.fixed(amount), "an amount of padding")
    zero = [call["value"] == 0 and flag for flag in x.zero]
    return call.label(axes, zero)


class TwoLayers(nn.Module):
    """A function of parameters [4, 6], [5, 6] and [4, 6]."""

    def __init__(self, function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(rows, 6)) for rows in (4, 5, 4))
        self.function = function

    def forward(self) -> Tensor:
        return self.function(self.a * 2, self.b, self.c)


class _Sized(nn.Module):
    """Splits 9 into the sizes of a tuple, and multiplies each part by a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes, self.a = [2, 3, 4], nn.Parameter(torch.randn(9, 5))
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(size, 5)) for size in self.sizes])

    def forward(self) -> Tensor:
        parts = torch.split(self.a, self.sizes)
        return torch.cat([part * weight for part, weight in zip(parts[::-1], self.weights[::-1], strict=True)])


class _Split(nn.Module):
    """Splits 6 into halves of a given size that are multiplied."""

    def __init__(self, function: Callable[[Tensor, int], Sequence[Tensor]] = torch.split) -> None:
        super().__init__()
        self.size, self.a, self.function = 3, nn.Parameter(torch.randn(6, 5)), function

    def forward(self) -> Tensor:
        first, second = self.function(self.a, self.size)
        return first.sigmoid() * second


class _Gates(nn.Module):
    """A recurrent cell, whose gates torch splits."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.h = nn.Parameter(torch.randn(2, 4)), nn.Parameter(torch.randn(2, 3))
        self.w, self.u = nn.Parameter(torch.randn(9, 4)), nn.Parameter(torch.randn(9, 3))

    def forward(self) -> Tensor:
        return torch.gru_cell(self.x, self.h, self.w, self.u)


class _Repeat(nn.Module):
    """A row is copied as often as another tensor has rows."""

    def __init__(self) -> None:
        super().__init__()
        self.copies, self.a, self.b = 3, nn.Parameter(torch.randn(1, 5)), nn.Parameter(torch.randn(3, 10))

    def forward(self) -> Tensor:
        return self.a.repeat(self.copies, 2) + self.b


rule(aten.repeat_interleave.Tensor)(by_value)  # as often as another tensor has rows


def _halves(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    first, second = a.chunk(2, dim=1)
    return first.sigmoid() * second


def _padded(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.nn.functional.pad(a, (1, 2, 0, 1)) * 1.5


def _padded_with_twos(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    return torch.nn.functional.pad(a, (0, 0, 0, 1), value=2.0)


sample(cat)(lambda: TwoLayers(lambda a, b, c: torch.cat([a, b])))
sample(cat)(lambda: TwoLayers(lambda a, b, c: torch.cat([c, a.sigmoid()], 1)))
sample(stack)(lambda: TwoLayers(lambda a, b, c: torch.stack([a, c, c.sigmoid()], 1)))
sample(split)(lambda: TwoLayers(_halves))
sample(split)(_Split)
sample(split)(_Gates)
sample(split)(lambda: _Split(torch.unsafe_split))
sample(split_with_sizes)(_Sized)
sample(unbind)(lambda: TwoLayers(lambda a, b, c: a.unbind(0)[1] + b))
sample(repeat)(_Repeat)
sample(pad)(lambda: TwoLayers(_padded))
sample(pad)(lambda: TwoLayers(_padded_with_twos))


@mutant(cat)
def _cat_backwards(call: Call) -> Label:
    right, dim = cat(call), call["dim"]
    axes = list(right.axes)
    axes[dim] = concatenate([x.axes[dim] for x in call["tensors"]][::-1])
    return call.label(axes)


@mutant(cat)
def _cat_believes_the_first(call: Call) -> Label:
    return call.label(cat(call).axes, [any(x.zero[i] for x in call["tensors"]) for i in range(2)])


@mutant(stack)
def _stack_without_tie(call: Call) -> Label:
    axes = list(call["tensors"][0].axes)
    axes.insert(call["dim"], call.fixed(len(call["tensors"])))
    return call.label(axes)


@mutant(stack)
def _stack_believes_the_first(call: Call) -> Label:
    right = stack(call)
    return call.label(right.axes, [call["tensors"][0].zero[0], False, call["tensors"][0].zero[1]])


def _parts(call: Call, turned: bool) -> list[Label]:
    x, dim, start, parts = call["self"], call["dim"], 0, []
    axis = x.axes[dim].take(slice(None, None, -1)) if turned else x.axes[dim]
    for output, shape in enumerate(call.shapes):
        parts.append(cut_out(call, x, dim, axis.take(slice(start, start + shape[dim])), output))
        start += shape[dim]
    return parts


@mutant(split)
@mutant(split_with_sizes)
def _split_without_sizes(call: Call) -> list[Label]:
    call.size_exprs([number.value for number in call.python.numbers])
    return _parts(call, turned=False)


@mutant(split)
@mutant(split_with_sizes)
def _split_from_the_end(call: Call) -> list[Label]:
    _ = split(call) if "split_size" in call.arguments else split_with_sizes(call)
    return _parts(call, turned=True)


@mutant(unbind)
def _unbind_free(call: Call) -> list[Label]:
    return [call.label(call["self"].axes[1:], output=output) for output in range(len(call.shapes))]


@mutant(repeat)
def _repeat_free(call: Call) -> Label:
    call.size_exprs(call["repeats"])
    return call.label([call.fresh(size) for size in call.shapes[0]])


@mutant(repeat)
def _repeat_each_entry(call: Call) -> Label:
    right, old = repeat(call), call["self"].axes[1]
    interleaved = Axis(old.ids.repeat(call["repeats"][1], axis=0))
    return call.label((right.axes[0], interleaved))


@mutant(pad)
def _pad_at_the_end(call: Call) -> Label:
    x: Label = call["self"]
    pairs = zip(x.axes, call.shapes[0], strict=True)
    return call.label([concatenate([axis, call.fixed(size - axis.size)]) for axis, size in pairs])


@mutant(pad)
def _padding_is_always_zero(call: Call) -> Label:
    return call.label(pad(call).axes, (True, True))
