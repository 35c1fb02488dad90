"""What a run does beside some modules: the operators between layers, and what they are given.

Code may use the place of a layer, or how many there are: `x * 0.9**i`, an activation after all but the last, a window
that is shifted in every other layer. Then it is another network that is computed when entries of the list are deleted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Any

from niwaki.erasing.living import around
from niwaki.trace.graph import Graph, ModuleCall, Origin, Ref, Run

Name = Callable[[str], str | None]
Terms = dict[Hashable, int]  # every expression that was met, with a number of its own


def steps(
    graph: Graph,
    run: Run,
    beside: Mapping[str, str | None],
    handed_on: Mapping[int, int],
    name_of: Name,
    terms: Terms,
) -> tuple[Counter[int], list[int]]:
    """What ``run`` calls, writes to, returns and leaves in buffers, each as the number of an expression of
    parameters, inputs and constants. Both are equal for runs that do the same, in whatever order.

    Args:
        beside: modules that are not looked into, by path. A call of one is a step of the name that it has here, on what
            it is given; None: the module is deleted elsewhere, and its calls are no steps.
        handed_on: what deleted modules return, and what takes its place.
        name_of: the names of parameters and buffers in the steps.
        terms: shared by the runs that are compared; new expressions are added to it.
    """
    known: dict[int, int] = {}
    done: Counter[int] = Counter()

    def term(*expression: Hashable) -> int:
        return terms.setdefault(expression, len(terms))

    def of(number: int) -> int:
        while handed_on.get(number, number) != number:
            number = handed_on[number]
        if number not in known:
            value = graph.values[number]
            held = graph.contents.get(number)
            told = value.origin, name_of(value.name), value.shape, value.dtype, None if held is None else repr(held)
            known[number] = term(object()) if value.origin is Origin.COMPUTED else term(*told)  # made elsewhere
        return known[number]

    def called(call: ModuleCall) -> None:
        name = beside[call.module]
        if name is not None:
            step = term(name, tuple((place, of(number)) for place, number in call.tensors.items()))
            done[step] += 1
            for place, number in enumerate(_tensors(call.result)):
                known.setdefault(number, term(step, place))

    waiting = [call for call in run.calls if call.module in beside and not _within(call.module, beside)]
    waiting.sort(key=lambda call: call.first, reverse=True)
    for place, node in enumerate(run.nodes):
        while waiting and waiting[-1].first <= place:
            called(waiting.pop())
        if beside.keys().isdisjoint(around(node.location.module)):
            step = term(node.operator, _plain(node.args, of), _plain(node.kwargs, of))
            done[step] += node.operator._schema.is_mutable
            made = (number for number in node.outputs if number is not None)
            known |= {number: term(step, slot) for slot, number in enumerate(made)}
    for call in reversed(waiting):
        called(call)
    return +done, [of(number) for number in (*run.outputs, *(number for _, number in run.remade))]


def _within(path: str, modules: Mapping[str, str | None]) -> bool:
    return any(outer in modules for outer in around(path)[1:])


def _tensors(result: Any) -> Iterator[int]:
    if isinstance(result, Ref):
        yield result.value
    elif isinstance(result, (tuple, list)):
        for part in result:
            yield from _tensors(part)
    elif isinstance(result, dict):
        for part in result.values():
            yield from _tensors(part)


def _plain(argument: Any, of: Callable[[int], int]) -> Hashable:
    """An argument of an operator, as something that can be compared."""
    if isinstance(argument, Ref):
        return "value", of(argument.value)
    if isinstance(argument, (tuple, list)):
        return tuple(_plain(one, of) for one in argument)
    if isinstance(argument, Mapping):
        return tuple((name, _plain(one, of)) for name, one in argument.items())
    if isinstance(argument, int) and not isinstance(argument, bool):
        return int(argument)
    return repr(argument) if isinstance(argument, float) else argument if isinstance(argument, Hashable) else None
