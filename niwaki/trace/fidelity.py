"""Make sure that the traced network does what the network does without niwaki.

A traced network gets stand-ins: tracked integers, and copies of the containers and objects that hold them. Code that
asks for more than their values (``self.stride is 1``, ``type(k) is int``, ``config in self.known``, a dict whose keys
are objects) may take another branch. So the model first runs without stand-ins, and the traced run must call the same
operators on the same tensors. If it does not, fewer numbers are tracked, and in the last resort none, which is the run
that it is compared with.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from niwaki.core.numbers import Attribute, leaves
from niwaki.core.paths import Where, describe
from niwaki.trace.caches import empty_caches_of
from niwaki.trace.eager import run_eagerly
from niwaki.trace.extent import EVERYTHING, NOTHING, Extent, Place
from niwaki.trace.gradients import gradient_notes
from niwaki.trace.graph import Graph
from niwaki.trace.matching import Departure, departure
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import Attempt, RunsToMake, Tracer, tracing

_REPEATS = 1  # the first run of either kind may fill a cache that the second one uses
_STEPS = 8  # the number of places in the code that are handled one by one
_RETURNS = 16  # the number of trials to track again numbers that were given up together
_NAMED = 3  # the number of attributes that a note names

_Kind = tuple[type, str, Where]  # one attribute of all modules of a class


@run_eagerly
def faithful_trace(
    model: torch.nn.Module, calls: Sequence[ExampleCall], modes: Sequence[bool] = (False, True)
) -> Graph:
    """`trace`, compared with runs of the model in which nothing is tracked. The ``notes`` of the graph say which
    numbers could not be tracked.

    Raises:
        TraceError: the model does not run in eval mode with these inputs.
    """
    graph = _faithful(model, calls, modes)
    if graph.notes:
        graph = replace(graph, notes=(*graph.notes, *_iterator_notes(model)))
    return replace(graph, notes=(*graph.notes, *gradient_notes(model, calls, graph.asked)))


def _faithful(model: torch.nn.Module, calls: Sequence[ExampleCall], modes: Sequence[bool]) -> Graph:
    with tracing(model, RunsToMake(calls, modes)) as tracer:
        plain = tracer.attempt(NOTHING)
        if plain.kept:  # with all numbers computed: a cache outside of the modules may keep them
            empty_caches_of(plain.kept)
            plain = tracer.attempt(NOTHING, real=True)
        if plain.failure is not None:
            raise plain.failure from plain.graph.runs[-1].error
        attempt, repeats = tracer.attempt(EVERYTHING), 0
        while (found := departure(attempt.graph, plain.graph)) is not None:
            again = tracer.attempt(NOTHING)
            other = departure(again.graph, plain.graph)
            if other is not None:
                return _nondeterministic(attempt, again, other)
            if repeats == _REPEATS:
                return _StepDown(tracer, plain.graph).graph(attempt, found)
            attempt, repeats = tracer.attempt(EVERYTHING), repeats + 1
        return attempt.graph


def _nondeterministic(attempt: Attempt, again: Attempt, found: Departure) -> Graph:
    """The graph of a model of which two untracked runs differ: with a note, except where a third run equals the second,
    since then the first one filled a cache."""
    if departure(attempt.graph, again.graph) is None:
        return attempt.graph
    note = f"The model does not compute the same in every run: two that began alike differ at {found.location}."
    return replace(again.graph if attempt.failure is not None else attempt.graph, notes=(note,))


def _iterator_notes(model: torch.nn.Module) -> list[str]:
    """A note about iterators among the attributes of modules, which may be the reason why runs differ."""
    kept = [
        f"{path}.{name}" if path else name
        for path, module in model.named_modules()
        for name, value in vars(module).items()
        if isinstance(value, Iterator)
    ]
    if not kept:
        return []
    return [
        f"The model draws from an iterator that it keeps ({_listed(kept)}), which cannot be put back: each "
        "run goes on where the last one ended, and may compute something else. Make it anew in each pass, or count in "
        "an attribute instead."
    ]


class _StepDown:
    """Finds the largest extent that can be tracked without changing what the model does."""

    def __init__(self, tracer: Tracer, plain: Graph) -> None:
        self._tracer, self._plain = tracer, plain
        self._classes = {path: type(module) for path, module in tracer.inventory.modules}

    def graph(self, attempt: Attempt, found: Departure) -> Graph:
        """A faithful trace, found from one that departs from the untracked run."""
        extent, places, first = EVERYTHING, attempt.places, found
        rest: Departure | None = found
        for _ in range(_STEPS):
            assert rest is not None
            for less in self._less(extent, attempt, rest):
                trial, moved = self._tried(less)
                if moved is None or moved.index > rest.index:
                    extent, attempt, rest = less, trial, moved
                    break
            else:
                break
            if rest is None:
                extent, attempt = self._more(extent, attempt)
                return self._noted(attempt.graph, first, extent, places)
        extent = replace(NOTHING, sizes=True)
        attempt, rest = self._tried(extent)
        if rest is None:
            return self._noted(attempt.graph, first, extent, places)
        return self._noted(self._plain, first, NOTHING, places)

    def _tried(self, extent: Extent) -> tuple[Attempt, Departure | None]:
        attempt = self._tracer.attempt(extent)
        return attempt, departure(attempt.graph, self._plain)

    def _less(self, extent: Extent, attempt: Attempt, found: Departure) -> Iterator[Extent]:
        """Smaller extents, the larger ones first. A departure at a place in the code may be caused by a number of the
        module that runs there or of the modules around it; other modules of their classes have the same code. Numbers
        that the trace did not use are given up first, since nothing is lost without them."""
        inner = {path for location in found.locations for path in (location.module,) if self._is_users(path)}
        around = {path for location in found.locations for path in _around(location.module) if self._is_users(path)}
        blamed = {self._classes[path] for path in around}
        numbers = {place for place in attempt.places if self._classes[place[0]] in blamed}
        used = {self._kind(place) for place in _used(attempt.graph)}
        unused = {place for place in numbers if self._kind(place) not in used}
        kinds = {self._classes[path] for path in inner}
        unsized = extent.unsized | {path for path, kind in self._classes.items() if kind in kinds}
        if unused:
            yield replace(extent, plain=extent.plain | unused)
        if numbers - unused:
            yield replace(extent, plain=extent.plain | numbers)
        if unsized != extent.unsized:
            yield replace(extent, unsized=unsized)
            if numbers:
                yield replace(extent, unsized=unsized, plain=extent.plain | numbers)

    def _more(self, extent: Extent, attempt: Attempt) -> tuple[Extent, Attempt]:
        """Track again the numbers that were given up needlessly together with others, by halves, then halves of these,
        ..."""
        kinds = list(dict.fromkeys(self._kind(place) for place in sorted(extent.plain, key=str)))
        left, todo = _RETURNS, [kinds[: len(kinds) // 2], kinds[len(kinds) // 2 :]] if len(kinds) > 1 else []
        while todo and left:
            some, left = todo.pop(), left - 1
            given = set(some)
            more = replace(extent, plain=frozenset(p for p in extent.plain if self._kind(p) not in given))
            trial, rest = self._tried(more)
            if rest is None:
                extent, attempt = more, trial
            elif len(some) > 1:
                todo += [some[: len(some) // 2], some[len(some) // 2 :]]
        return extent, attempt

    def _kind(self, place: Place) -> _Kind:
        return self._classes[place[0]], *place[1:]

    def _is_users(self, path: str) -> bool:
        """Whether this is the name of a module whose code is not torch's."""
        return path in self._classes and not self._classes[path].__module__.startswith("torch.")

    def _noted(self, graph: Graph, found: Departure, extent: Extent, places: Sequence[Place]) -> Graph:
        """The graph with a note why numbers of the model count as literals."""
        names = [describe(*place) for place in places if not extent.attributes or place in extent.plain]
        what = [_listed(names)] if names else []
        if not extent.sizes or extent.unsized:
            what.append(
                "the sizes of tensors"
                + (
                    f" in {_listed([path or 'the model itself' for path in sorted(extent.unsized)])}"
                    if extent.sizes
                    else ""
                )
            )
        note = (
            f"The code at {found.location} asks for more than the value of a number or a setting (for its class or its "
            f"identity, with `type` or `is`). It goes another way where niwaki tracks them, so these count as numbers "
            f"written in the source: {' and '.join(what)}."
        )
        return replace(graph, notes=(note,))


def _around(path: str) -> Iterator[str]:
    """The names of a module and of the modules that contain it."""
    yield path
    while path:
        path = path.rpartition(".")[0]
        yield path


def _used(graph: Graph) -> Iterator[Place]:
    """The attributes that reached an operator or a comparison, directly or in a computed number."""
    for run in graph.runs:
        for node in run.nodes:
            yield from ((scalar.module, scalar.name, ()) for scalar in node.call.scalars)
        numbers: list[Any] = [number for node in run.nodes for number in node.call.numbers]
        for expression in {*numbers, *(frozen.expression for frozen in run.frozen)}:
            for leaf in leaves(expression):
                if isinstance(leaf, Attribute):
                    yield leaf.module, leaf.name, leaf.where


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
