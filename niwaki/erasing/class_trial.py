"""Try what `ClassForm` decides: many structures are erased at once from a copy without content, which is then run.

What fails is looked for by halves, among structures that are alike first. The copies are small, since most of the
network is gone.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from typing import final

from torch import nn

from niwaki.core.names import named_modules
from niwaki.core.renaming import Renaming
from niwaki.core.structures import Structure
from niwaki.erasing.class_form import ClassForm, ModulesLeft
from niwaki.erasing.living import RunLeft, around
from niwaki.erasing.structures import FoundStructures, counted_inputs
from niwaki.erasing.validity import Validity
from niwaki.errors import first_line
from niwaki.solve.dry_run import failures_not_logged
from niwaki.surgery.cut import duplicate
from niwaki.trace.extent import NOTHING
from niwaki.trace.graph import Graph, Node, Origin, Run
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import trace

_AS_GRAPH = "use as_graph=True"
_PATIENCE = 24  # trials, after which what is alike to something that fails is refused with it

Gone = Callable[[Collection[int]], frozenset[str]]


def tried(
    model: nn.Module, calls: Sequence[ExampleCall], found: FoundStructures, form: ClassForm, gone: Gone
) -> tuple[Structure, ...]:
    """The structures of ``found``, those refused that the class of ``model`` cannot do without."""
    refused = _ClassTrials(model, calls, found, form, gone).refused()
    return tuple(
        one if number not in refused else replace(one, refused=f"{refused[number]}; {_AS_GRAPH}")
        for number, one in enumerate(found.listed)
    )


@final
class _ClassTrials:
    def __init__(
        self, model: nn.Module, calls: Sequence[ExampleCall], found: FoundStructures, form: ClassForm, gone: Gone
    ) -> None:
        self._model, self._calls, self._found, self._form, self._gone = model, calls, found, form, gone
        self._failed: dict[int, str] = {}
        self._spent = 0

    def refused(self) -> dict[int, str]:
        """Why the class cannot live without some structures, by number."""
        lists, rounds = frozenset(self._form.lists), list(self._rounds())
        self._form.whole_only = lists
        for together in rounds:
            self._look(together)
        self._form.whole_only = frozenset()
        held: set[str] = set()
        for together in rounds:
            held |= self._look_at_entries(together, lists)
        self._form.whole_only = frozenset(held)
        return self._failed

    def _rounds(self) -> Iterator[set[int]]:
        """All structures that can be erased by themselves, in a few sets that can be erased together, none of which is
        in another."""
        found = self._found
        counted = counted_inputs(found.graph, found.flow)
        waiting = [number for number, one in enumerate(found.listed) if one.erasable]
        while waiting:
            validity = Validity(found.flow, counted, found.nesting)
            chosen: set[int] = set()
            outer: set[int] = set()
            for number in waiting:
                around = self._around(number)
                if number not in outer and chosen.isdisjoint(around):
                    if validity.erase(found.vertices[number]) is None:
                        chosen.add(number)
                        outer |= around
            if not chosen:
                return
            yield chosen
            waiting = [number for number in waiting if number not in chosen]

    def _around(self, number: int) -> set[int]:
        """The structures around one."""
        around: set[int] = set()
        outer = self._found.listed[number].inside
        while outer is not None:
            around.add(outer)
            outer = self._found.listed[outer].inside
        return around

    def _look(self, together: set[int]) -> None:
        """Find those of some structures that fail, while no entry of a list is deleted."""
        left = self._left(together)
        for obstacle in left.obstacles:
            places = left.runs[0].dead
            own = {place for place in places if obstacle.path in around(left.runs[0].run.nodes[place].location.module)}
            for number in together:
                if not own.isdisjoint(self._found.nesting.within(self._found.vertices[number])):
                    self._failed.setdefault(number, f"{obstacle.path!r} cannot be left out of its code: {obstacle.why}")
        alike: dict[object, set[int]] = {}
        for number in together - self._failed.keys():
            one = self._found.listed[number]
            alike.setdefault((one.location.file, one.location.line, one.operand), set()).add(number)
        why = self._why_not(together - self._failed.keys())
        if why is not None:
            self._search(list(alike.values()), why)
            rest = together - self._failed.keys()
            why = self._why_not(rest)
            if why is not None:  # each is fine by itself
                self._failed |= dict.fromkeys(rest, why)

    def _search(self, parts: list[set[int]], why: str) -> None:
        """Find what fails, by halves, among some sets, which fail together because of ``why``."""
        if len(parts) == 1:
            (together,) = parts
            if len(together) == 1 or self._spent > _PATIENCE:
                self._failed |= dict.fromkeys(together, why)
                return
            parts = [{number} for number in sorted(together)]
        for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
            reason = self._why_not(set().union(*half))
            if reason is not None:
                self._search(half, reason)

    def _look_at_entries(self, together: set[int], lists: frozenset[str]) -> set[str]:
        """The lists of modules from which no entry can be deleted. A structure that is all that an entry computes may
        fail otherwise, if the entry can be deleted."""
        failed = together & self._failed.keys()
        whole = {number: path for number in failed if (path := self._whole_entry(number)) is not None}
        good = together - failed
        chosen = good | whole.keys()
        edit = self._left(chosen).edit
        held: set[str] = set()
        if edit.entries and self._why_not(chosen) is not None:
            paths = {entry.rpartition(".")[0] for entry in edit.entries}
            for path in sorted(paths):
                self._form.whole_only = lists - {path}
                if self._why_not(good | {number for number, where in whole.items() if where == path}) is not None:
                    held.add(path)
            self._form.whole_only = frozenset()
        for number, path in whole.items():
            if path not in held:
                del self._failed[number]
        return held

    def _whole_entry(self, number: int) -> str | None:
        """The list of modules of which one entry goes with a structure, if nothing else does."""
        left = self._left({number})
        edit = left.edit
        if left.obstacles or edit.absent or edit.unset or len(edit.entries) != 1:
            return None
        return edit.entries[0].rpartition(".")[0]

    def _left(self, erased: Collection[int]) -> ModulesLeft:
        return self._form.without(erased, self._gone(erased))

    def _why_not(self, erased: Collection[int]) -> str | None:
        """What goes wrong in the model without these structures; None if nothing does."""
        if not erased:
            return None
        self._spent += 1
        left = self._left(erased)
        if left.obstacles:
            return left.obstacles[0].why
        small = _without_content(self._model)
        left.edit.apply(dict(named_modules(small)))
        names = Renaming(left.edit.moved)
        runs = {id(one.run): one for one in left.runs}
        seen: set[object] = set()
        for run, call in zip(self._found.graph.runs, itertools.cycle(self._calls), strict=False):
            lines = {node.location for node in run.nodes}
            if id(run) in runs and not lines <= seen:
                seen |= lines
                with failures_not_logged():
                    tried = trace(
                        small, [call], (run.training,), required=True, failing=True, decided=run.decisions,
                        extent=NOTHING,
                    )  # fmt: skip
                why = _difference(self._found.graph, runs[id(run)], tried, names)
                if why is not None:
                    return why
        return None


def _without_content(model: nn.Module) -> nn.Module:
    """A copy that shares the memory of the parameters."""
    lent: dict[int, object] = {
        id(parameter): nn.Parameter(parameter.detach(), parameter.requires_grad) for parameter in model.parameters()
    }
    return duplicate(model, lent)


def _difference(graph: Graph, left: RunLeft, tried: Graph, names: Renaming) -> str | None:
    """What a run does otherwise than the dense one without what was erased: it fails, gives other shapes, or calls
    other operators with parameters."""
    again = tried.runs[0]
    if again.error is not None:
        return f"its code fails without it: {type(again.error).__qualname__}: {first_line(again.error)}"
    dead = frozenset(left.dead)
    expected = [
        (place, node.operator, tuple(map(names.after, read)))
        for place, node in enumerate(left.run.nodes)
        if place not in dead and (read := _parameters(graph, node))
    ]
    found = [
        (place, node.operator, read) for place, node in enumerate(again.nodes) if (read := _parameters(tried, node))
    ]
    if [called[1:] for called in found] != [called[1:] for called in expected]:
        return "its code calls other modules without it"
    if _outputs(tried, again, [place for place, *_ in found]) != _outputs(
        graph, left.run, [place for place, *_ in expected]
    ):
        return "its code returns something else without it"
    return None


def _outputs(graph: Graph, run: Run, called: Sequence[int]) -> list[tuple[tuple[int, ...], int]]:
    """The shape of each output, and how many of the operators ``called`` come before the one that made it."""
    made = {number: place for place, node in enumerate(run.nodes) for number in node.outputs if number is not None}
    return [(graph.values[number].shape, bisect_left(called, made.get(number, -1))) for number in run.outputs]


def _parameters(graph: Graph, node: Node) -> tuple[str, ...]:
    values = (graph.values[number] for number in node.inputs())
    return tuple(value.name for value in values if value.origin is Origin.PARAMETER)
