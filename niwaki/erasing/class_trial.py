"""Try what `ClassForm` decides: many structures are erased at once from a copy without content, which is then run.

What fails is looked for by halves, among structures that are alike first. The copies are small, since most of the
network is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import final

from torch import nn

from niwaki.core.absent import Result
from niwaki.core.structures import Structure
from niwaki.erasing.class_form import ClassForm, ModulesLeft
from niwaki.erasing.living import around
from niwaki.erasing.stand_ins import StandIns
from niwaki.erasing.structures import FoundStructures, counted_inputs
from niwaki.erasing.trial_runs import TrialRuns
from niwaki.erasing.validity import Validity
from niwaki.trace.structures import ExampleCall

_AS_GRAPH = "use as_graph=True"
_TWO = 2
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
        self._found, self._form, self._gone = found, form, gone
        self._runs, self._stand_ins = TrialRuns(model, calls, found.graph), StandIns(form.modules)
        self._failed: dict[int, str] = {}
        self._beside: set[int] = set()  # what else is erased in each trial
        self._spent = 0
        self._joining = {one.location.module for one in found.listed} - {""}
        self._confirmed: set[str] = set()  # what goes wrong with stand-ins, and without them
        self._known: dict[tuple[frozenset[int], frozenset[str]], ModulesLeft] = {}

    def refused(self) -> dict[int, str]:
        """Why the class cannot live without some structures, by number."""
        lists, rounds = frozenset(self._form.lists), []
        self._form.whole_only = lists
        kinds = self._kinds = {number: self._kind(one) for number, one in enumerate(self._found.listed) if one.erasable}
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
            together = self._without_obstacles(together)
            self._look(together)
            rounds.append((together, self._beside))
            fine = {kinds[number] for number in together} - {kinds.get(number) for number in self._failed}
            done = together | self._failed.keys()
            waiting = [number for number in waiting if number not in done and kinds[number] not in fine]
        held: set[str] = set()
        looked_at: set[str] = set()
        for together, self._beside in rounds:
            looked, kept = self._look_at_entries(together, lists)
            looked_at |= looked
            held |= kept
        self._form.whole_only = lists - (looked_at - held)
        self._look_at_each_kind()
        return self._failed

    def _look_at_each_kind(self) -> None:
        """What was fine beside others may have an obstacle by itself: of each kind the first and the last are looked
        at, and all if one of these has any. And code may ask whether a parameter is None, and do something else for all
        of a module: what unsets one must be fine by itself, too."""
        self._beside = set()
        members: dict[object, list[int]] = {}
        for number, kind in self._kinds.items():
            if number not in self._failed:
                members.setdefault(kind, []).append(number)
        for alike in members.values():
            if any(self._left({number}).obstacles for number in (alike[0], alike[-1])):
                found = {number: self._left({number}).obstacles for number in alike}
                self._failed |= {number: str(why[0]) for number, why in found.items() if why}
            rest = [number for number in alike if number not in self._failed]
            why = self._why_not({rest[0]}) if rest and self._left({rest[0]}).edit.unset else None
            if why is not None:
                self._failed |= dict.fromkeys(rest, why)

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

    def _without_obstacles(self, together: set[int]) -> set[int]:
        """Those of some structures that can be tried together. What has an obstacle by itself fails; what has one only
        beside others is left for another round."""
        if not self._left(together | self._others).obstacles:
            return together
        for number in together:
            alone = self._left({number}).obstacles
            if alone:
                self._failed[number] = str(alone[0])
        chosen: set[int] = set()
        for number in (*sorted(together - self._failed.keys()), *sorted(self._others)):
            if not self._left(chosen | {number}).obstacles:
                chosen.add(number)
        self._beside = chosen - together
        return chosen & together

    def _look(self, together: set[int]) -> None:
        """Find those of some structures that fail, while no entry of a list is deleted."""
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
            parts = [{number} for number in sorted(self._without_whole_kinds(together))]
            if not parts:
                return
        for half in (parts[: len(parts) // 2], parts[len(parts) // 2 :]):
            reason = self._why_not(set().union(*half))
            if reason is not None:
                self._search(half, reason)

    def _without_whole_kinds(self, together: set[int]) -> set[int]:
        """Those of some structures, which fail together, whose kind does not fail as a whole: its first and its last
        structure, each by itself."""
        members: dict[object, list[int]] = {}
        for number in sorted(together):
            members.setdefault(self._kinds[number], []).append(number)
        for alike in members.values():
            first = self._why_not({alike[0]}) if len(alike) > _TWO else None
            if first is not None and self._why_not({alike[-1]}) is not None:
                self._failed |= dict.fromkeys(alike, first)
        return together - self._failed.keys()

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
            erased = chosen | self._others
            paths = {entry.rpartition(".")[0] for entry in form.entries(erased, self._gone(erased))}
            if not paths:
                break
            looked_at |= paths
            if self._why_not(chosen) is not None:
                for path in sorted(paths):
                    form.whole_only = lists - {path}
                    if self._why_not(good | {number for number, where in whole.items() if where == path}) is not None:
                        held.add(path)
        held |= self._counted(good | whole.keys(), looked_at - held)
        for number, path in whole.items():
            if path in looked_at - held:
                del self._failed[number]
        return looked_at, held

    def _counted(self, erased: set[int], lists: set[str]) -> set[str]:
        """Those of ``lists`` of which code knows the places or the number of the entries: another network would be
        computed without some. The first, the last and all entries that can go are deleted in turn, of all lists at once
        that are not in another."""
        form, found = self._form, set[str]()
        for depth in sorted({path.count(".") for path in lists}):
            here: dict[str, list[tuple[str, set[int]]]] = {p: [] for p in sorted(lists) if p.count(".") == depth}
            form.whole_only = frozenset(form.lists).difference(here)
            for entry in form.entries(erased, self._gone(erased)):
                own = {number for number in erased if self._is_inside(number, entry)}
                here[entry.rpartition(".")[0]].append((entry, own))
            found |= {path for path, some in here.items() if not some}
            here = {path: some for path, some in here.items() if some}
            free = {path: some for path, some in here.items() if not form.walks_by_itself(path)}
            for deleted in (here, *({path: [some[place]] for path, some in free.items()} for place in (0, -1))):
                if deleted and self._places_count(deleted):
                    found |= {path for path, some in deleted.items() if self._places_count({path: some})}
        return found

    def _is_inside(self, number: int, entry: str) -> bool:
        """Whether a structure is of nothing but a module, and the modules inside of that."""
        one = self._found.listed[number]
        own = [*one.parameters, *one.gates, *((one.layer,) if one.layer is not None else ())]
        return bool(own) and all(entry in around(name) for name in own)

    def _places_count(self, deleted: Mapping[str, Sequence[tuple[str, set[int]]]]) -> bool:
        """Whether the code around lists does anything else without these entries, or they cannot be deleted alone."""
        pairs = [pair for some in deleted.values() for pair in some]
        left = self._left(set[int]().union(*(own for _, own in pairs)))
        edit = left.edit
        if left.obstacles or edit.absent or edit.unset or {*edit.entries} != {entry for entry, _ in pairs}:
            return True
        stand_ins = self._stand_ins.of(self._joining, edit, left.runs, lambda path: self._result(left, path))
        return self._runs.places_count(left, stand_ins) and (not stand_ins or self._runs.places_count(left, {}))

    def _result(self, left: ModulesLeft, path: str) -> Result:
        return self._form.result(path, left.runs, replace(left.missing, recorded=True))

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
        key = frozenset(erased), self._form.whole_only
        if key not in self._known:
            self._known[key] = self._form.without(erased, self._gone(erased), dense=True)
        return self._known[key]

    def _why_not(self, erased: Collection[int]) -> str | None:
        """What goes wrong in the model without these structures; None if nothing does."""
        if not erased:
            return None
        self._spent += 1
        left = self._left(self._others.union(erased))
        if left.obstacles:
            return str(left.obstacles[0])
        stand_ins = self._stand_ins.of(self._joining, left.edit, left.runs, lambda path: self._result(left, path))
        why = self._runs.difference(left, stand_ins)
        if not stand_ins or why is None or why in self._confirmed:
            return why
        again = self._runs.difference(left, {})
        if again == why:
            self._confirmed.add(why)
        return again
