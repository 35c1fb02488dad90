"""How the length of a dimension of what a module returns follows from what it is given, whatever the operators do to
the numbers: windows slide over it, transposed convolutions stretch it, all else that is followed leaves it alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch

from niwaki.core.absent import LengthStep, SizeOfArgument, stepped
from niwaki.core.numbers import Count
from niwaki.trace.graph import Graph, ModuleCall, Node, Ref, Run

aten = torch.ops.aten
_POOLS = {aten.max_pool2d_with_indices.default: (4, 5), aten.avg_pool2d.default: (None, 4)}  # dilation, rounding up
_SAME: LengthStep = (1, 0, 1, 0)
_REACH = 2000  # operators that are looked at for one length


@final
class Lengths:
    """The lengths in one call of a module. ``arguments``: how many tensors it was given."""

    def __init__(self, graph: Graph, run: Run, call: ModuleCall) -> None:
        self._graph, self._nodes, self._call = graph, run.nodes, call
        self._known: dict[tuple[int, int], SizeOfArgument | None] = {}
        self._changes: dict[int, bool] = {}
        self.arguments = len(call.tensors)
        self._given = {number: steps for steps, number in reversed([*call.tensors.items()])}
        self._makers: dict[int, list[int]] = {}
        for place in range(call.first, call.end):
            for number in run.nodes[place].outputs:
                if number is not None:
                    self._makers.setdefault(number, []).append(place)

    def of(self, number: int, dim: int) -> SizeOfArgument | None:
        """The length of dimension ``dim`` of value ``number``; None if no way to an argument is understood."""
        key = number, dim
        if key not in self._known:
            self._known[key] = self._found(number, dim)
        return self._known[key]

    def _found(self, number: int, dim: int) -> SizeOfArgument | None:
        shape = self._graph.values[number].shape
        here = dim - len(shape)
        waiting: list[tuple[int, int, tuple[LengthStep, ...]]] = [(number, self._call.end, ())]
        seen: set[tuple[int, int]] = set()
        while waiting and len(seen) < _REACH:
            value, before, steps = waiting.pop()
            place = next((p for p in reversed(self._makers.get(value, ())) if p < before), None)
            if place is None:
                source = self._graph.values[value].shape
                if value in self._given and len(source) == len(shape) and stepped(source[dim], steps) == shape[dim]:
                    return SizeOfArgument(self._given[value], dim, steps)
            elif (place, value) not in seen:
                seen.add((place, value))
                for other, step in self._before(self._nodes[place], value, here):
                    waiting.append((other, place, steps if step == _SAME else (step, *steps)))
        return None

    def changes(self, dim: int) -> bool:
        """Whether an operator of the call changes the length of dimension ``dim``, counted from the end."""
        if dim not in self._changes:
            nodes = self._nodes[self._call.first : self._call.end]
            self._changes[dim] = any(self._step(node, dim) not in (None, _SAME) for node in nodes)
        return self._changes[dim]

    def _before(self, node: Node, value: int, dim: int) -> Iterator[tuple[int, LengthStep]]:
        """The tensors of which the dimension of a result has the length, once it has been stepped."""
        made = self._graph.values[value].shape
        step = self._step(node, dim)
        numbers = list(node.inputs())[:1] if step is not None else list(node.inputs())
        for number in reversed(numbers):  # the first is looked at first
            shape = self._graph.values[number].shape
            if len(shape) == len(made) and stepped(shape[dim], (step or _SAME,)) == made[dim]:
                yield number, step or _SAME
        if step is None:  # a size that was read from a tensor and given to the operator
            for read in node.call.numbers:
                if isinstance(read, Count) and isinstance(read.axis, tuple):
                    number, of = read.axis
                    shape = self._graph.values[number].shape
                    if len(shape) == len(made) and of - len(shape) == dim and shape[dim] == made[dim]:
                        yield number, _SAME

    def _step(self, node: Node, dim: int) -> LengthStep | None:
        """What an operator with windows does to the length of dimension ``dim``; None of another operator."""
        if node.operator is aten.convolution.default:
            weight = node.args[1]
            assert isinstance(weight, Ref)
            kernel = self._graph.values[weight.value].shape[2:]
            if -dim > len(kernel):
                return None
            stride, padding, dilation, transposed, more = (node.args[index] for index in (3, 4, 5, 6, 7))
            k, s, p, d = (int(each[dim if len(each) >= -dim else 0]) for each in (kernel, stride, padding, dilation))
            if transposed:
                return _plain((s, d * (k - 1) - 2 * p - s + 1 + int(more[dim if len(more) >= -dim else 0]), 1, 0))
            return _plain((1, 2 * p - d * (k - 1) - 1, s, 1))
        if node.operator not in _POOLS or -dim > 2:
            return None
        dilated, ceiled = _POOLS[node.operator]
        kernel = node.args[1]
        stride = (node.args[2] if len(node.args) > 2 else ()) or kernel
        padding = node.args[3] if len(node.args) > 3 else (0,)
        dilation = node.args[dilated] if dilated is not None and len(node.args) > dilated else (1,)
        k, s, p, d = (int(each[dim if len(each) >= -dim else 0]) for each in (kernel, stride, padding, dilation))
        up = len(node.args) > ceiled and bool(node.args[ceiled])
        if up and (p or k < s):  # the last window may start behind the end, and is left out then
            return (0, 0, 1, -1)
        return _plain((1, 2 * p - d * (k - 1) - 1 + (s - 1 if up else 0), s, 1))


def _plain(step: LengthStep) -> LengthStep:
    """The same step, written as `_SAME` if it changes no length."""
    times, plus, over, more = step
    return _SAME if (times, over) == (1, 1) and plus + more == 0 else step
