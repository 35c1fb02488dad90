"""Try what `ClassForm` decides: many structures are erased at once from a copy without content, which is then run.

What fails is looked for by halves, among structures that are alike first. The copies are small, since most of the
network is gone.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Callable, Collection, Sequence
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
from niwaki.surgery.cut import duplicate
from niwaki.trace.extent import NOTHING
from niwaki.trace.fake import failures_not_logged
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
        self._beside: set[int] = set()  # what else is erased in each trial
        self._spent = 0

    def refused(self) -> dict[int, str]:
        """Why the class cannot live without some structures, by number."""
        lists, rounds = frozenset(self._form.lists), []
        self._form.whole_only = lists
        kinds = {number: self._kind(one) for number, one in enumerate(self._found.listed) if one.erasable}
        for number in [number for number in kinds if self._found.listed[number].concatenated]:
            alone = self._form.without({number}, self._gone({number})).obstacles
            if alone:  # something passes through it, which may be gone where it is tried with others
                self._failed[number] = str(alone[0])
                del kinds[number]
        waiting = list(kinds)
        while waiting:
            together, self._beside = self._round(waiting, kinds)
            if not together:
                break
            self._look(together)
            rounds.append((together, self._beside))
            fine = {kinds[number] for number in together} - {kinds.get(number) for number in self._failed}
            waiting = [number for number in waiting if number not in together and kinds[number] not in fine]
        held: set[str] = set()
        looked_at: set[str] = set()
        for together, self._beside in rounds:
            looked, kept = self._look_at_entries(together, lists)
            looked_at |= looked
            held |= kept
        self._form.whole_only = lists - (looked_at - held)
        self._look_at_unset(kinds)
        return self._failed

    def _look_at_unset(self, kinds: dict[int, object]) -> None:
        """Code may ask whether a parameter is None, and do something else for all of a module: what unsets one must be
        fine by itself, too, and not only beside others."""
        self._beside = set()
        looked_at: dict[object, str | None] = {}
        for number in [number for number in kinds if number not in self._failed]:
            kind = kinds[number]
            if kind not in looked_at:
                looked_at[kind] = self._why_not({number}) if self._left({number}).edit.unset else None
            why = looked_at[kind]
            if why is not None:
                self._failed[number] = why

    def _kind(self, one: Structure) -> object:
        """What is equal for structures of which one is enough to be tried: they are added by the same line, and come
        from parameters of the same names in modules of the same classes and flags."""
        outer = one.location.module
        owners = {path for name in one.parameters for path in around(name.rpartition(".")[0])}
        owners.update(outer for path in one.gates for outer in around(path))
        flags = [
            (path.removeprefix(outer), type(module), tuple(i for i in module.__dict__.items() if type(i[1]) is bool))
            for path in sorted(owners)
            if path.startswith(outer) and (module := self._form.modules.get(path)) is not None
        ]
        names = tuple(name.removeprefix(outer) for name in one.parameters)
        return one.location.file, one.location.line, one.operand, one.operators, tuple(flags), names

    def _round(self, waiting: list[int], kinds: dict[int, object]) -> tuple[set[int], set[int]]:
        """Structures that can be erased together, none of which is in another: as many kinds as possible, then as many
        structures. With them what can be erased beside them, so that less is left to run."""
        found = self._found
        validity = Validity(found.flow, counted_inputs(found.graph, found.flow), found.nesting)
        members: dict[object, list[int]] = {}
        for number in waiting:
            members.setdefault(kinds[number], []).append(number)
        chosen: set[int] = set()
        outer: set[int] = set()

        def takes(number: int) -> bool:
            around = self._around(number)
            if number in outer | chosen | self._failed.keys() or not chosen.isdisjoint(around):
                return False
            if validity.erase(found.vertices[number]) is not None:
                return False
            chosen.add(number)
            outer.update(around)
            return True

        for alike in sorted(members.values(), key=len):
            any(map(takes, alike))
        for number in (*waiting, *kinds):
            takes(number)
        waits = set(waiting)
        return chosen & waits, chosen - waits

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
        left = self._left(together | self._others)
        for obstacle in left.obstacles:
            places = left.runs[0].dead
            own = {place for place in places if obstacle.path in around(left.runs[0].run.nodes[place].location.module)}
            for number in together:
                if not own.isdisjoint(self._found.nesting.within(self._found.vertices[number])):
                    self._failed.setdefault(number, str(obstacle))
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

    def _look_at_entries(self, together: set[int], lists: frozenset[str]) -> tuple[set[str], set[str]]:
        """The lists of modules from which entries were deleted, and those of them where that fails. A structure that is
        all that an entry computes may fail otherwise, if the entry can be deleted."""
        form, failed = self._form, together & self._failed.keys()
        form.whole_only = frozenset()
        whole = {number: path for number in failed if (path := self._whole_entry(number)) is not None}
        good = together - failed
        held: set[str] = set()
        looked_at: set[str] = set()
        while True:  # lists inside of entries that are deleted come after these
            form.whole_only = frozenset(looked_at)
            chosen = good | {number for number, path in whole.items() if path not in looked_at}
            paths = {entry.rpartition(".")[0] for entry in self._left(chosen | self._others).edit.entries}
            if not paths:
                break
            looked_at |= paths
            if self._why_not(chosen) is not None:
                for path in sorted(paths):
                    form.whole_only = lists - {path}
                    if self._why_not(good | {number for number, where in whole.items() if where == path}) is not None:
                        held.add(path)
        for number, path in whole.items():
            if path in looked_at - held:
                del self._failed[number]
        return looked_at, held

    @property
    def _others(self) -> set[int]:
        return self._beside - self._failed.keys()

    def _whole_entry(self, number: int) -> str | None:
        """The list of modules of which one entry goes with a structure, if nothing else does."""
        left = self._left({number})
        edit = left.edit
        if left.obstacles or edit.absent or edit.unset or len(edit.entries) != 1:
            return None
        return edit.entries[0].rpartition(".")[0]

    def _left(self, erased: Collection[int]) -> ModulesLeft:
        return self._form.without(erased, self._gone(erased), dense=True)

    def _why_not(self, erased: Collection[int]) -> str | None:
        """What goes wrong in the model without these structures; None if nothing does."""
        if not erased:
            return None
        self._spent += 1
        left = self._left(self._others.union(erased))
        if left.obstacles:
            return str(left.obstacles[0])
        small = without_content(self._model)
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


def without_content(model: nn.Module) -> nn.Module:
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
