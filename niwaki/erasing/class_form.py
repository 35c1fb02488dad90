"""How the modules of a network live on without some structures.

A module of which no operator lives goes. Living code that calls it gets zeros instead, from an `Absent`. An entry of a
list of modules that has become the identity, such as a pre-norm transformer layer without its two halves, is deleted;
those behind it move up, and attributes that number layers follow.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import final

from torch import nn

from niwaki.core.absent import Result
from niwaki.core.edits import EraseModules
from niwaki.core.names import named_modules
from niwaki.erasing.concatenation import RunFlow
from niwaki.erasing.emptied import emptied
from niwaki.erasing.layer_numbers import numbered
from niwaki.erasing.living import LivingRuns, RunLeft, around
from niwaki.erasing.returned import Missing, NoResult, Returned, same_result
from niwaki.erasing.structures import FoundStructures
from niwaki.erasing.zero_widths import ZeroWidths
from niwaki.rules.constraints import Constraints
from niwaki.trace.graph import ModuleCall, Ref


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Why living code cannot do without the module at ``path``."""

    path: str
    why: str

    def __str__(self) -> str:
        return f"{self.path!r} cannot be left out of its code: {self.why}"


@dataclass(frozen=True, slots=True)
class ModulesLeft:
    """The ``edit`` that erases some structures, and the ``obstacles`` to it. ``staying``: parameters of code that lives
    on and reads them, though nothing follows from it."""

    edit: EraseModules
    obstacles: tuple[Obstacle, ...]
    runs: Sequence[RunLeft]
    missing: Missing
    staying: frozenset[str]


@final
class ClassForm:
    """Decides what becomes of the modules of ``model``. ``flows``: those of its runs. ``inner``: see
    `Returned`.

    ``modules``: those of the model by path. ``whole_only``: the paths of lists of modules from which no entry is
    deleted; whoever tries the edits sets it.
    """

    def __init__(
        self, model: nn.Module, found: FoundStructures, flows: Sequence[RunFlow], constraints: Constraints, inner: bool
    ) -> None:
        self._found = found
        self.modules: dict[str, nn.Module] = dict(named_modules(model))
        inside = {name for structure in found.listed for name in structure.parameters}
        first, self._shared = _names(self.modules)
        self._returned = Returned(found.graph, constraints, inside, inner)
        self._parameters: dict[str, list[str]] = {}  # by the path of each module around them
        for name in first:
            for path in around(name.rpartition(".")[0]):
                self._parameters.setdefault(path, []).append(name)
        # As they are now: a model that is shrunk while it trains has fewer.
        self._lists = {
            path: {key: type(entry) for key, entry in module._modules.items()}
            for path, module in self.modules.items()
            if isinstance(module, (nn.ModuleList, nn.Sequential))
        }
        self._runs = LivingRuns(found, flows)
        self._numbers = numbered(self.modules, found.graph)
        self.whole_only: frozenset[str] = frozenset()

    @property
    def lists(self) -> tuple[str, ...]:
        """The paths of all lists of modules."""
        return tuple(self._lists)

    def without(self, erased: Collection[int], gone: frozenset[str], dense: bool = False) -> ModulesLeft:
        """The modules without the structures of these numbers. ``gone``: the tensors that nothing reads any more.
        ``dense``: for a network whose other tensors are as they were, which read zeros where they are concatenated."""
        runs = self._runs.without(erased)
        left_out = {one.path for run in runs for one in run.bypassed}
        living = set().union(*(run.living_modules for run in runs), *(around(path)[1:] for path in left_out))
        entries = self._entries(runs, gone)
        within = {path for path in living if any(outer in entries for outer in around(path))}
        dead = set().union(*(run.dead_modules for run in runs)) - living - entries.keys()
        gates = [path for number in sorted(erased) for path in self._found.listed[number].gates]
        outermost = self._outermost(dead, living - within, runs, gates)
        absent: dict[str, Result] = {}
        without = emptied(self._found.graph, runs, [*outermost, *entries], dead)
        outermost += without.modules
        bypassed = {result: given for run in runs for result, given in run.handed_on.items()}
        missing = Missing(gone, frozenset([*outermost, *entries]), () if dense else without.values, bypassed=bypassed)
        obstacles = [Obstacle(*kept) for kept in without.kept.items()]
        for path in outermost:
            try:
                absent[path] = self.result(path, runs, missing, zero=path in gates)
            except NoResult as why:
                obstacles.append(Obstacle(path, str(why)))
        factors = frozenset().union(*(self._found.factors[number] for number in erased))
        lost, more = self._unset([*entries, *outermost], living - within, gone)
        unset, staying = [name for name in lost if name not in factors], factors.intersection(lost)
        renumbered, numbers = self._counted(entries, [*entries, *outermost])
        names = tuple(self._found.listed[number].name for number in sorted(erased))
        left = {*outermost, *entries}
        obstacles += [Obstacle(path, _NO_CODE) for path in gates if left.isdisjoint(around(path))]
        layers = {
            path: self.result(path, runs, Missing(gone, frozenset(), bypassed=bypassed)) for path in sorted(left_out)
        }
        closed = tuple(dict.fromkeys(gates))
        edit = EraseModules(names, absent, tuple(entries), renumbered, tuple(unset), numbers, closed, layers)
        widths = ZeroWidths(self._found.graph, missing, without.values, self._returned.stays)
        conflicts = [Obstacle(*found) for found in dict(widths.conflicts(runs)).items()]
        return ModulesLeft(edit, (*obstacles, *more, *conflicts), runs, missing, staying)

    def staying(self, erased: Collection[int], gone: frozenset[str]) -> frozenset[str]:
        """The parameters that code reads which lives on without these structures, though nothing follows from it."""
        factors = (self._found.factors[number] for number in erased)
        return frozenset() if gone.isdisjoint(chain(*factors)) else self.without(erased, gone).staying

    def walks_by_itself(self, path: str) -> bool:
        """Whether a list of modules calls its entries one after the other, so that no code knows their places."""
        return type(self.modules[path]).forward is nn.Sequential.forward

    def entries(self, erased: Collection[int], gone: frozenset[str]) -> tuple[str, ...]:
        """The entries of lists of modules that are deleted without these structures."""
        return tuple(self._entries(self._runs.without(erased), gone))

    def _outermost(
        self, dead: Collection[str], living: Collection[str], runs: Sequence[RunLeft], gates: Collection[str]
    ) -> list[str]:
        """Modules with parameters or ``gates`` that nothing of lives, and that are called by code that does."""
        called = {call.module for run in runs for call in run.run.calls}
        found: list[str] = []
        open_to = set(living)
        around_gates = {outer for path in gates for outer in around(path)} - set(living)
        for path in self.modules:
            ends = path in around_gates or (path in dead and path in self._parameters)
            if ends and path.rpartition(".")[0] in open_to:
                if path in called:
                    found.append(path)
                else:
                    open_to.add(path)
        return found

    def result(self, path: str, runs: Sequence[RunLeft], missing: Missing, zero: bool = False) -> Result:
        """What has to stand where the module at ``path`` was. ``zero``: zeros, also where it handed something on.

        Raises:
            NoResult: nothing can.
        """
        calls = [(run.run, call) for run in runs for call in run.run.calls if call.module == path]
        if not calls:
            raise NoResult("it is used without being called")
        return same_result(self._returned.result(run, call, missing, zero) for run, call in calls)

    def _entries(self, runs: Sequence[RunLeft], gone: frozenset[str]) -> dict[str, None]:
        """Entries of lists of modules that return what they are given, and do nothing else any more."""
        found: dict[str, None] = {}
        for path, entries in self._lists.items():
            if path in self.whole_only or any(outer in found for outer in around(path)):
                continue
            if not self._is_stack(path, runs):
                continue
            for key in entries:
                entry = f"{path}.{key}" if path else key
                own = self._parameters.get(entry, ())
                if own and gone.issuperset(own) and _is_identity(entry, runs):
                    found[entry] = None
        return found

    def _is_stack(self, path: str, runs: Sequence[RunLeft]) -> bool:
        """Whether a list of modules is run one after the other: it is called itself, or its entries are alike; code
        picks each of different ones by its place."""
        if any(call.module == path for run in runs for call in run.run.calls):
            return True
        return len(set(self._lists[path].values())) == 1

    def _unset(
        self, modules: Sequence[str], living: Collection[str], gone: frozenset[str]
    ) -> tuple[list[str], list[Obstacle]]:
        """The parameters that living modules lose, and what keeps parameters of the others."""
        leaving = {name for path in modules for name in self._parameters.get(path, ())}
        obstacles = [
            Obstacle(path, f"its parameter {name!r} belongs to another module, too")
            for path in modules
            for name in self._parameters.get(path, ())
            if any(path not in around(owner) for owner in self._shared.get(name, ()))
        ]
        unset = []
        for name in self._parameters.get("", ()):
            if name in gone and name not in leaving:
                path = name.rpartition(".")[0]
                if path in living:
                    unset.append(name)
                else:
                    obstacles.append(Obstacle(path, f"its parameter {name!r} is read without a call of it"))
        return unset, obstacles

    def _counted(
        self, entries: Mapping[str, None], leaving: Sequence[str]
    ) -> tuple[dict[str, str], dict[tuple[str, str], int]]:
        """The entries that get another number, with it; and attributes that number layers, with their values."""
        left = frozenset(leaving)

        def lives(path: str) -> bool:
            return left.isdisjoint(around(path))

        renumbered: dict[str, str] = {}
        numbers: dict[tuple[str, str], int] = {}
        for path in dict.fromkeys([*self._numbers, *(entry.rpartition(".")[0] for entry in entries)]):
            if not lives(path):
                continue
            keys = list(self._lists[path])
            prefix = f"{path}." if path else ""
            stay = [place for place, key in enumerate(keys) if prefix + key not in entries]
            if keys == [str(place) for place in range(len(keys))]:
                renumbered |= {prefix + keys[old]: str(new) for new, old in enumerate(stay) if new != old}
            place_of = {old: new for new, old in enumerate(stay)}
            for one in self._numbers.get(path, ()):
                numbers |= one.values(lives, place_of)
        return renumbered, numbers


_NO_CODE = "nothing else runs in the code that calls it"


def _is_identity(path: str, runs: Sequence[RunLeft]) -> bool:
    """Whether every call of a module returns what it was given, and nothing else that it does reaches an output."""
    if any(path in left.busy_modules for left in runs):
        return False
    calls = [(call, left) for left in runs for call in left.run.calls if call.module == path]
    return bool(calls) and all(_hands_on(call, left) for call, left in calls)


def _hands_on(call: ModuleCall, left: RunLeft) -> bool:
    """Whether the first tensor that is returned is the first that was given, and the others were given, too."""
    parts = call.result if isinstance(call.result, (tuple, list)) else (call.result,)
    plain = all(isinstance(part, (Ref, type(None), bool, int, float, str)) for part in parts)
    given, made_of = _given(call, left), list(handed_on(call, left).values())
    return bool(given and made_of) and plain and made_of[0] == given[0] and set(made_of) <= set(given)


def handed_on(call: ModuleCall, left: RunLeft) -> dict[int, int]:
    """What each tensor is that a call returns, by its value number: one before, where only one operand of additions is
    left."""
    same = _same(call, left)
    parts = call.result if isinstance(call.result, (tuple, list)) else (call.result,)
    return {part.value: same.get(part.value, part.value) for part in parts if isinstance(part, Ref)}


def _given(call: ModuleCall, left: RunLeft) -> list[int]:
    same = _same(call, left)
    return [same.get(number, number) for number in call.tensors.values()]


def _same(call: ModuleCall, left: RunLeft) -> dict[int, int]:
    same = {**left.handed_on}
    for join in range(call.first, call.end):
        if join in left.dissolved:
            made, rest = left.run.nodes[join].outputs[0], left.dissolved[join]
            if made is not None and made != rest:
                same[made] = same.get(rest, rest)
    return same


def _names(modules: Mapping[str, nn.Module]) -> tuple[list[str], dict[str, list[str]]]:
    """The names of all parameters; and the modules that hold each tensor that several hold, by its first name."""
    first: dict[int, str] = {}
    holders: dict[str, list[str]] = {}
    parameters = []
    for path, module in modules.items():
        for kind in (module._parameters, module._buffers):
            for leaf, tensor in kind.items():
                if tensor is not None:
                    if id(tensor) not in first:
                        first[id(tensor)] = name = f"{path}.{leaf}" if path else leaf
                        if kind is module._parameters:
                            parameters.append(name)
                    holders.setdefault(first[id(tensor)], []).append(path)
    return parameters, {name: paths for name, paths in holders.items() if len(paths) > 1}
