"""Experts of routers as structures, each a group of one unit. As many can vanish as the router can do without."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
from torch import nn

from niwaki.core.edits import Edit
from niwaki.core.names import named_parameters
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.core.structures import Erasures, ErasureTrial, Structure
from niwaki.core.tensor_dims import Role
from niwaki.erasing.expert_counts import counts_around, note
from niwaki.erasing.expert_trial import ExpertTrials
from niwaki.erasing.found_erasures import FoundErasures
from niwaki.erasing.reading import Given
from niwaki.erasing.routers import Router, routers
from niwaki.errors import PlanError
from niwaki.rules.constraints import Constraints
from niwaki.solve.gates import Homes, SplitAxis, TensorPart
from niwaki.trace.graph import Graph
from niwaki.trace.structures import ExampleCall

_NARROW = 6  # units that groups keep where experts are tried


def with_experts(
    erasures: FoundErasures | None,
    space: SearchSpace,
    graph: Graph,
    constraints: Constraints,
    given: Sequence[Given],
    ignored: Mapping[str, str],
    calls: Sequence[ExampleCall],
    looked_after: Sequence[object],
    equal: bool,
    fault: str | None = None,
) -> FoundErasures | ErasableExperts | None:
    """``erasures`` and the experts of a module: those of every router, which are tried. ``space``: the units of the
    module; ``looked_after``: objects on modules whose numbers an integration updates. ``equal``: all routers of as many
    experts keep equally many. ``fault``: why nothing can be cut from it. The other arguments: see `structures`."""
    taken = {(dim.tensor, dim.dim) for dim in space.dims}
    decided = {(one.module, one.name, one.where) for one in space.numbers.deciding}
    found = routers(space.model, graph, constraints, given, taken, decided, looked_after)
    if not found:
        return erasures
    modes = sorted({mode for run in graph.runs if run.error is None for mode in {run.training, run.both}})
    trials = ExpertTrials(space.model, _narrow(space), calls, modes, equal)
    tried = [trials.best(some) if fault is None else replace(some[0], why=fault) for some in found]
    tried = trials.around(tried)
    losing = [router for router in tried if router.why is None]
    counts = counts_around(space.model, losing)
    said = note(counts, trials.followed(losing), equal) if counts else None
    return ErasableExperts(
        space.model, erasures, tried, graph, constraints, ignored, equal, () if said is None else (said,)
    )


def _narrow(space: SearchSpace) -> Plan | None:
    """A plan that leaves few units in every group; None where the ties between groups allow no such plan."""
    keep = np.ones(space.num_units, dtype=bool)
    tied = {number for tie in space.ties for number in tie.groups}
    for number, group in enumerate(space.groups):
        if number not in tied:
            keep[group.first + min(group.units, _NARROW) : group.first + group.units] = False
    for tie in space.ties:
        groups = [space.groups[number] for number in tie.groups]
        times = min(max(0, group.units - _NARROW) // step for group, step in zip(groups, tie.steps, strict=True))
        for group, step in zip(groups, tie.steps, strict=True):
            keep[group.first + group.units - step * min(times, tie.most) : group.first + group.units] = False
    try:
        return space.plan(keep)
    except PlanError:
        return None


@dataclass(frozen=True, slots=True)
class _Expert:
    """Expert ``number`` of ``router``, with the ``parameters`` that are its own."""

    router: Router
    number: int
    parameters: tuple[str, ...]

    def name(self, taken: Collection[str]) -> str:
        """Its module, or its number in the module that has the weights of all; else its number at the router."""
        entries = self.router.entries(self.number)
        if len(entries) == 1 and entries[0] not in taken:
            return entries[0]
        owner = self.router.weight.rpartition(".")[0]
        homes = {name.rpartition(".")[0] for name, _ in self.router.slices[1:]} - {owner}
        home = next(iter(homes)) if len(homes) == 1 and not entries else ""
        return f"{home or self.router.module or self.router.weight}[{self.number}]"


@final
@dataclass(frozen=True, slots=True, eq=False)
class _Trial(ErasureTrial):
    erasures: ErasableExperts
    joined: ErasureTrial | None
    erased: set[int] = field(default_factory=set)

    def erase(self, number: int) -> str | None:
        why = self.erasures.why_no_more(number, self.erased)
        if why is None and self.erasures.is_joined(number):
            assert self.joined is not None
            why = self.joined.erase(number)
        if why is None:
            self.erased.add(number)
        return why


@final
class ErasableExperts(Erasures):
    """The structures at joins, and the experts behind them.

    Args:
        model: the network.
        joined: the structures at joins; None for a network without joins.
        found: the routers, those refused that cannot lose experts.
        ignored: parameters that must stay, each with the pattern that says so.
        equal: whether all routers of as many experts keep equally many.
        notes: what a user should know of them.
    """

    __slots__ = ("_constraints", "_equal", "_experts", "_first", "_joined", "_listed", "_values", "notes")

    def __init__(
        self,
        model: nn.Module,
        joined: FoundErasures | None,
        found: Sequence[Router],
        graph: Graph,
        constraints: Constraints,
        ignored: Mapping[str, str],
        equal: bool,
        notes: tuple[str, ...],
    ) -> None:
        self.notes = notes
        self._joined, self._constraints, self._equal = joined, constraints, equal
        self._values = graph.values
        before = () if joined is None else joined.listed
        self._first = len(before)
        names = [name for name, _ in named_parameters(model)]
        sizes = {name: one.numel() for name, one in named_parameters(model)}
        self._experts = [
            _Expert(router, number, tuple(name for name in names if _is_in(name, router.entries(number))))
            for router in found
            for number in range(router.experts)
        ]
        experts = [self._structure(one, before, sizes, ignored) for one in self._experts]
        self._listed = (*self._nested(before, experts), *experts)

    def _structure(
        self, one: _Expert, before: Sequence[Structure], sizes: Mapping[str, int], ignored: Mapping[str, str]
    ) -> Structure:
        router = one.router
        held = next((name for name in (*one.parameters, *(name for name, _ in router.slices)) if name in ignored), None)
        why = router.why
        if held is not None:
            why = f"{held!r} is ignored by the pattern {ignored[held]!r}"
        params = sum(sizes[name] for name in one.parameters)
        params += sum(sizes[name] // router.experts for name, _ in router.slices if name in sizes)
        macs = sum(
            self._constraints.macs[term].times
            * math.prod(axis.size for axis in self._constraints.macs[term].axes)
            // router.experts
            for term in {term for term, _ in self._multiplied(router)}
        )
        around = [number for number, outer in enumerate(before) if router.weight in outer.parameters]
        smallest = min(around, key=lambda number: before[number].operators, default=None)
        return Structure(
            one.name({structure.name for structure in before}),
            router.location,
            router.node,
            one.number,
            0,
            macs,
            params,
            one.parameters,
            one.parameters,
            smallest,
            why,
            router=router.module or router.weight,
        )

    def _multiplied(self, router: Router) -> list[tuple[int, int]]:
        """The terms of the multiply-accumulates with one of a router's dimensions, and the place of that in them."""
        constraints = self._constraints
        numbers = {value.name: value.number for value in self._values if value.name}
        begins = {constraints.ids_of[numbers[name], dim][0] for name, dim in router.slices}
        return [
            (number, column)
            for number, term in enumerate(constraints.macs)
            for column, axis in enumerate(term.axes)
            if axis.size == router.experts and axis.ids.shape[1] == 1 and int(axis.ids[0, 0]) in begins
        ]

    def _nested(self, before: Sequence[Structure], experts: Sequence[Structure]) -> list[Structure]:
        """The structures at joins, those inside of an expert said to be."""
        nested = []
        for one in before:
            for number, expert in enumerate(experts):
                own = self._experts[number].parameters
                if own and one.inside == expert.inside and one.parameters and set(one.parameters) <= set(own):
                    one = replace(one, inside=self._first + number)
            nested.append(one)
        return nested

    @property
    def listed(self) -> tuple[Structure, ...]:
        return self._listed

    def is_joined(self, number: int) -> bool:
        """Whether a structure is one at joins, and no expert."""
        return number < self._first

    def together(self, number: int) -> tuple[int, ...]:
        return self._joined.together(number) if self._joined and self.is_joined(number) else (number,)

    def blocks(self, worth: Mapping[int, float]) -> list[tuple[int, ...]]:
        joined = {number: each for number, each in worth.items() if self.is_joined(number)}
        found = [] if self._joined is None else self._joined.blocks(joined)
        alone = [(number,) for number in worth if not self.is_joined(number)]
        return [*found, *(self._ranked(worth) if self._equal else alone)]

    def _ranked(self, worth: Mapping[int, float]) -> Iterator[tuple[int, ...]]:
        """The experts that are worth least to each router, then the second least, and so on."""
        own: dict[int, dict[str, list[int]]] = {}
        for number in worth:
            if not self.is_joined(number):
                router = self._router(number)
                own.setdefault(router.experts, {}).setdefault(router.weight, []).append(number)
        for by_router in own.values():
            yield from zip(*(sorted(one, key=lambda n: (worth[n], n)) for one in by_router.values()), strict=False)

    def trial(self) -> _Trial:
        return _Trial(self, None if self._joined is None else self._joined.trial())

    def why_no_more(self, number: int, erased: Collection[int]) -> str | None:
        """Why a structure cannot be erased beside others, as far as experts are concerned; None if it can."""
        one = self.listed[number]
        if one.refused is not None:
            return one.refused
        if not set(self.around(number)).isdisjoint(erased):
            return "it is part of what is erased already"
        if self.is_joined(number):
            return None
        router = self._experts[number - self._first].router
        gone = [other for other in erased if not self.is_joined(other) and self._router(other) is router]
        if router.experts - len(gone) - 1 < router.least:
            return f"its router chooses {router.least} experts at once, and only as many are left"
        return None

    def why_not(self, erased: Collection[int]) -> str | None:
        before: list[int] = []
        for number in [one for one in erased if not self.is_joined(one)]:
            why = self.why_no_more(number, before)
            if why is not None:
                return f"{self.listed[number].name} cannot be erased: {why}. Keep it, or keep one of the others."
            before.append(number)
        joined = [one for one in erased if self.is_joined(one)]
        why = self._joined.why_not(joined) if self._joined is not None and joined else None
        return why or (self._why_unequal(erased) if self._equal else None)

    def _why_unequal(self, erased: Collection[int]) -> str | None:
        """Why routers cannot have lost these: others of as many experts keep more. None if they can."""
        left: dict[int, dict[str, int]] = {}
        for number in range(self._first, len(self.listed)):
            if set(self.around(number)[1:]).isdisjoint(erased):
                router = self._router(number)
                keeps = left.setdefault(router.experts, {})
                keeps[router.weight] = keeps.get(router.weight, 0) + (number not in erased)
        for keeps in left.values():
            (most, some), (least, few) = (pick(keeps.items(), key=lambda item: item[1]) for pick in (max, min))
            if some != few:
                return (
                    f"With layout='uniform' all routers keep equally many experts, and the plan leaves {some} to "
                    f"{most!r} and {few} to {least!r}. Erase as many of each."
                )
        return None

    @property
    def gates_run(self) -> bool:
        return True  # routers are found in classes only

    def gone(self, erased: Collection[int]) -> frozenset[str]:
        joined = [one for one in erased if self.is_joined(one)]
        gone = self._joined.gone(joined) if self._joined is not None and joined else frozenset()
        return gone.union(*(self._experts[one - self._first].parameters for one in erased if one not in joined))

    def edits(self, erased: Collection[int]) -> tuple[Edit, ...]:
        joined = [one for one in erased if self.is_joined(one)]
        edits = [*self._joined.edits(joined)] if self._joined is not None and joined else []
        losing: dict[str, tuple[Router, set[int]]] = {}
        for one in erased:
            if not self.is_joined(one):
                expert = self._experts[one - self._first]
                losing.setdefault(expert.router.weight, (expert.router, set()))[1].add(expert.number)
        for router, numbers in losing.values():
            edits += router.edits([one for one in range(router.experts) if one not in numbers])
        return tuple(edits)

    def homes(self) -> Homes:
        """As `FoundErasures.homes`. The operators of an expert cost what they did: others get its tokens."""
        homes = Homes({}, {}, {}, None) if self._joined is None else self._joined.homes()
        tensors, parts = dict(homes.tensors), dict(homes.parts)
        units: dict[str, list[int]] = {}
        routers: dict[str, Router] = {}
        for place, one in enumerate(self._experts):
            number = self._first + place
            if not self.listed[number].erasable:
                continue
            for name in one.parameters:
                if not any(number in self.around(inner) for inner in tensors.get(name, ())):
                    tensors[name] = (number,)
            parts[number] = [
                TensorPart(name, dim, np.array([one.number]), Role.PRODUCER, True) for name, dim in one.router.slices
            ]
            routers[one.router.weight] = one.router
            units.setdefault(one.router.weight, []).append(number)
        split = [SplitAxis(units[name], one.slices, self._multiplied(one)) for name, one in routers.items()]
        return replace(homes, tensors=tensors, parts=parts, split=split)

    def _router(self, number: int) -> Router:
        return self._experts[number - self._first].router


def _is_in(name: str, entries: Collection[str]) -> bool:
    return any(name == entry or name.startswith(f"{entry}.") for entry in entries)
