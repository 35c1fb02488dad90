"""Layers that can be left out as a whole: what a layer is given takes the place of what it returns.

In a transformer whose norms stand behind the additions (post-norm), a layer without its two halves is not the identity:
its norms stay. Leaving it out is a change that no zeros make, which is why it is inexact; the network that is left is
valid, and one layer shorter.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from itertools import pairwise

from torch import nn

from niwaki.core.names import named_modules, named_parameters
from niwaki.erasing.flow import ADDITIONS, Bypass, writes
from niwaki.trace.graph import Graph, ModuleCall, Ref, Run


def bypasses_of(model: nn.Module, graph: Graph) -> list[tuple[Bypass, ...]]:
    """The layers of each run: entries of lists of modules of one class that are called once, and of which nothing is
    used but one tensor, shaped like the first that they are given and handed to the next entry. The same layers in all
    runs that did not fail.

    Layers that add to what they are given (pre-norm) are left out: without the structures inside they are the identity.
    """
    lists = list(_lists(model))
    found = [{one.path: one for one in _of_run(graph, run, lists)} for run in graph.runs]
    living = [here for here, run in zip(found, graph.runs, strict=True) if run.error is None]
    same = [path for path in living[0] if all(path in other for other in living)]
    return [
        tuple(sorted((here[path] for path in same if path in here), key=lambda one: (one.end, -one.first)))
        for here in found
    ]


def _lists(model: nn.Module) -> Iterator[list[str]]:
    """The paths of the entries of lists of modules of one class with parameters."""
    owners = {name.rpartition(".")[0] for name, _ in named_parameters(model)}
    for path, module in named_modules(model):
        kinds = {type(entry) for entry in module._modules.values()}
        if isinstance(module, (nn.ModuleList, nn.Sequential)) and len(kinds) == 1:
            entries = [f"{path}.{key}" if path else key for key in module._modules]
            if all(any(f"{owner}.".startswith(f"{entry}.") for owner in owners) for entry in entries):
                yield entries


def _of_run(graph: Graph, run: Run, lists: Sequence[Sequence[str]]) -> Iterator[Bypass]:
    calls: dict[str, list[ModuleCall]] = {path: [] for entries in lists for path in entries}
    for call in run.calls:
        if call.module in calls:
            calls[call.module].append(call)
    users = _Users(graph, run)
    for entries in lists:
        row = [_bypass(calls[path]) for path in entries]
        joined = [a is not None and b is not None and a.result == b.given for a, b in pairwise(row)]
        for one, before, behind in zip(row, [True, *joined], [*joined, True], strict=True):
            if one is not None and len(row) > 1 and before and behind and users.can_do_without(one):
                yield one


def _bypass(calls: Sequence[ModuleCall]) -> Bypass | None:
    """The only call of a layer, if it is given a tensor and returns one."""
    if len(calls) != 1 or not calls[0].tensors:
        return None
    (call,) = calls
    result = _result(call)
    return (
        None if result is None else Bypass(call.module, call.first, call.end, next(iter(call.tensors.values())), result)
    )


def _result(call: ModuleCall) -> int | None:
    """The first tensor that a call returned, if all else are plain values or tensors that it was given."""
    parts = call.result if isinstance(call.result, (tuple, list)) else (call.result,)
    if not parts or not isinstance(parts[0], Ref):
        return None
    given = set(call.tensors.values())
    plain = all(isinstance(part, (type(None), bool, int, float, str)) or _is_given(part, given) for part in parts[1:])
    return parts[0].value if plain else None


def _is_given(part: object, given: Collection[int]) -> bool:
    return isinstance(part, Ref) and part.value in given


class _Users:
    """Who reads and writes each tensor and each memory of a run."""

    def __init__(self, graph: Graph, run: Run) -> None:
        self._values, self._run = graph.values, run
        self._readers: dict[int, list[int]] = {}
        self._written: dict[int, list[int]] = {}
        self._maker: dict[int, int] = {}
        for place, node in enumerate(run.nodes):
            for number in node.inputs():
                self._readers.setdefault(number, []).append(place)
            for number in writes(node):
                self._written.setdefault(graph.values[number].root, []).append(place)
            for output in node.outputs:
                if output is not None:
                    self._maker[output] = place

    def can_do_without(self, one: Bypass) -> bool:
        """Whether the tensor that a layer is given can take the place of the one that it returns."""
        given, result = self._values[one.given], self._values[one.result]
        inside = range(one.first, one.end)
        return (
            (given.shape, given.dtype) == (result.shape, result.dtype)
            and given.dtype.is_floating_point
            and self._maker.get(one.result, -1) in inside
            and self._maker.get(result.root, -1) in inside
            and any(place in inside for place in self._readers.get(one.given, ()))
            and not any(place in inside for place in self._readers.get(one.result, ()))
            and not self._written.get(result.root)
            and not any(place >= one.first for place in self._written.get(given.root, ()))
            and not any(self._readers.get(number) for number in self._beside(one.result))
            and all(number == one.result or self._stays_inside(number, inside) for number in self._made(inside))
            and not self._adds(one)
        )

    def _beside(self, result: int) -> Iterator[int]:
        outputs = self._run.nodes[self._maker[result]].outputs
        yield from (number for number in outputs if number is not None and number != result)

    def _made(self, inside: range) -> Iterator[int]:
        for place in inside:
            yield from (number for number in self._run.nodes[place].outputs if number is not None)

    def _stays_inside(self, number: int, inside: range) -> bool:
        return number not in self._run.outputs and all(place in inside for place in self._readers.get(number, ()))

    def _adds(self, one: Bypass) -> bool:
        """Whether the result is a sum of which the tensor that was given is a term."""
        waiting = [one.result]
        while waiting:
            number = waiting.pop()
            place = self._maker.get(number, -1)
            if number == one.given:
                return True
            if one.first <= place < one.end and self._run.nodes[place].operator in ADDITIONS:
                waiting += self._run.nodes[place].inputs()
        return False
