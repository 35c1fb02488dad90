"""What vanishes with any choice of structures, and whether they can vanish together."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import final

import numpy as np
import rustworkx as rx

from niwaki.core.counts import BoolArray
from niwaki.core.edits import Edit
from niwaki.core.structures import Erasures, ErasureTrial, Structure
from niwaki.core.tensor_dims import Role
from niwaki.erasing.structures import FoundStructures, counted_inputs
from niwaki.erasing.validity import Validity
from niwaki.solve.gates import Absences, Homes, TensorPart
from niwaki.trace.graph import Origin

EditsOf = Callable[[FoundStructures, Collection[int], frozenset[str]], tuple[Edit, ...]]
Staying = Callable[[Collection[int], frozenset[str]], frozenset[str]]
Obstacle = Callable[[Collection[int], frozenset[str]], str | None]

_MOST_SERVED = 4  # structures; what serves more of them counts as if it always stayed


@final
@dataclass(frozen=True, slots=True, eq=False)
class FoundErasureTrial(ErasureTrial):
    """See `ErasureTrial`."""

    erasures: FoundErasures
    validity: Validity
    chosen: list[int] = field(default_factory=list)

    def erase(self, number: int) -> str | None:
        found = self.erasures.found
        why = found.listed[number].refused or self.validity.why_not(found.vertices[number])
        if why is None:
            why = self.erasures.without_anything([*self.chosen, number])
        if why is None and self.erasures.careful and len(self.erasures.together(number)) == 1:
            why = self.erasures.obstacle([*self.chosen, number])
        if why is None:
            self.validity.erase(found.vertices[number])
            self.chosen.append(number)
        return why


def _no_obstacle(erased: Collection[int], gone: frozenset[str]) -> str | None:
    return None


def _nothing_stays(erased: Collection[int], gone: frozenset[str]) -> frozenset[str]:
    return frozenset()


@final
class FoundErasures(Erasures):
    """The structures that were found in the record of a run.

    Args:
        found: they.
        edits: what a cut does to erase some of them, by number, and the tensors that then vanish.
        layers: structures that are erased together or not at all.
        staying: which of the tensors that nothing follows from any more stay, without some structures.
        obstacle: why the code cannot do without some structures at once, each of which it can do without by itself.
        runs_on: whether code of modules that stay runs, whatever follows from it.

    ``careful``: whether trials look for obstacles, too. That takes some milliseconds for each structure, and there is
    hardly ever one: they do once `why_not` has found one.
    """

    __slots__ = (
        "_edits", "_found", "_layer", "_obstacle", "_obstacles", "_operand", "_pristine", "_readers", "_runs_on",
        "_staying",
        "careful",
    )  # fmt: skip

    def __init__(
        self,
        found: FoundStructures,
        edits: EditsOf,
        layers: Sequence[tuple[int, ...]] = (),
        staying: Staying = _nothing_stays,
        obstacle: Obstacle = _no_obstacle,
        runs_on: bool = False,
    ) -> None:
        self._found, self._edits, self._staying, self._obstacle = found, edits, staying, obstacle
        self._runs_on = runs_on
        self._obstacles: dict[frozenset[int], str | None] = {}
        self.careful = False
        self._pristine: Validity | None = None
        self._layer = {number: layer for layer in layers for number in layer}
        self._operand = dict(enumerate(found.vertices))
        self._readers: dict[int, list[int]] = {}  # parameters and buffers -> the vertices that are given them
        values = found.graph.values
        for place, node in enumerate(found.graph.runs[0].nodes):
            for number in node.inputs():
                root = values[number].root
                if values[root].origin in (Origin.PARAMETER, Origin.BUFFER):
                    self._readers.setdefault(root, []).extend(found.flow.readers(place, number))

    @property
    def listed(self) -> tuple[Structure, ...]:
        return self._found.listed

    @property
    def found(self) -> FoundStructures:
        """What was found."""
        return self._found

    def refused(self, why: str) -> FoundErasures:
        """The same structures, none of which can be erased, because ``why``."""
        listed = tuple(replace(one, refused=one.refused or why) for one in self.listed)
        found = replace(self._found, listed=listed)
        return FoundErasures(found, self._edits, staying=self._staying, runs_on=self._runs_on)

    def together(self, number: int) -> tuple[int, ...]:
        return self._layer.get(number, (number,))

    def blocks(self, worth: Mapping[int, float]) -> list[tuple[int, ...]]:
        return list(dict.fromkeys(map(self.together, worth)))

    def trial(self) -> FoundErasureTrial:
        return FoundErasureTrial(self, self._validity())

    def _validity(self) -> Validity:
        found = self._found
        if self._pristine is None:
            counted = counted_inputs(found.graph, found.flow)
            self._pristine = Validity(found.flow, counted, found.nesting, found.required)
        return self._pristine.fresh()

    def why_not(self, erased: Collection[int]) -> str | None:
        validity = self._validity()
        before: list[str] = []
        for number in erased:
            one = self.listed[number]
            why = one.refused or validity.erase(self._operand[number])
            if why is None and len(before) == len(erased) - 1:
                why = self.without_anything(erased) or self.obstacle(erased)
            if why is not None:
                beside = f" beside {', '.join(before)}" if before else ""
                return f"{one.name} cannot be erased{beside}: {why}. Keep it, or keep one of the others."
            before.append(one.name)
        return None

    def without_anything(self, erased: Collection[int]) -> str | None:
        """Why these cannot be erased although outputs follow from inputs: all that a parameter reads or makes would go,
        but what it serves stays. None if there is no such parameter."""
        values = self._found.graph.values
        left: dict[tuple[int, int], BoolArray] = {}
        for number in erased:
            for part in self._found.reading.parts(self._operand[number]):
                if values[part.value].origin is Origin.PARAMETER:
                    key = part.value, part.dim
                    stays = left.setdefault(key, np.ones(values[part.value].shape[part.dim], dtype=bool))
                    stays[part.positions] = False
        empty = [values[number].name for (number, _), stays in left.items() if not stays.any()]
        gone = self.gone(erased) if empty else frozenset()
        return next((f"nothing would be left of {name!r}, which is needed" for name in empty if name not in gone), None)

    def obstacle(self, erased: Collection[int]) -> str | None:
        """Why the code cannot do without these structures at once; None if it can."""
        outermost = frozenset(one for one in erased if not any(outer in erased for outer in self.around(one)[1:]))
        if outermost not in self._obstacles:
            why = self._obstacles[outermost] = self._obstacle(outermost, self.gone(outermost))
            self.careful |= why is not None
        return self._obstacles[outermost]

    @property
    def gates_run(self) -> bool:
        return self._runs_on

    def gone(self, erased: Collection[int]) -> frozenset[str]:
        living = self._living({self._operand[number] for number in erased})
        values = self._found.graph.values
        gone = frozenset(
            values[number].name
            for number, places in self._readers.items()
            if any(place in self._found.nesting.place for place in places) and living.isdisjoint(places)
        )
        return gone - self._staying(erased, gone)

    def edits(self, erased: Collection[int]) -> tuple[Edit, ...]:
        return self._edits(self._found, erased, self.gone(erased))

    def homes(self) -> Homes:
        """The structures that each operator and each tensor is in, or serves."""
        number = {vertex: place for place, vertex in self._operand.items() if self.listed[place].erasable}
        nesting, values = self._found.nesting, self._found.graph.values

        def home(vertex: int) -> Iterator[int]:
            while vertex != nesting.sink and vertex not in number:
                vertex = nesting.around[vertex]
            if vertex != nesting.sink:
                yield number[vertex]

        served = self._served(number)
        operators = {
            place: served.get(place) or tuple(home(nesting.nearest[place]))
            for place in range(self._found.flow.operators)
            if place in nesting.place
        }
        tensors: dict[str, tuple[int, ...]] = {}
        for one, places in self._readers.items():
            if all(place in nesting.place for place in places):
                several = self._outermost({number for place in places for number in served.get(place, ())})
                shared = len(several) <= _MOST_SERVED and all(place in served for place in places)
                tensors[values[one].name] = tuple(sorted(several) if shared else home(nesting.common(places)))
        solution = self._found.reading.solution
        absences = None if solution is None else Absences(solution, self._numbered())
        inside = {name: found[0] for name, found in tensors.items() if len(found) == 1}
        for one in sorted(number.values(), key=lambda one: -len(self.around(one))):  # what is around decides
            outer = tuple(home(nesting.around[self._operand[one]]))
            tensors |= dict.fromkeys(self._found.factors[one], outer)
        return Homes(self._that_run(operators, tensors), tensors, self._parts(inside), absences)

    def _that_run(
        self, operators: Mapping[int, tuple[int, ...]], tensors: Mapping[str, tuple[int, ...]]
    ) -> dict[int, tuple[int, ...]]:
        """The structures without which each of ``operators`` is not run: in a class, those without which its parameters
        are not there. A module that is called again elsewhere stays, and so does the code that calls it."""
        found = dict(operators)
        if self._runs_on:
            values = self._found.graph.values
            homes: dict[int, set[tuple[int, ...]]] = {}
            for one, places in self._readers.items():
                for place in places:
                    homes.setdefault(place, set()).add(tensors.get(values[one].name, ()))
            for place, several in homes.items():
                if place in found and several != {found[place]}:
                    found[place] = several.pop() if len(several) == 1 else ()
        return found

    def _served(self, number: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
        """The few structures without which nothing needs an operator any more, where nothing else does. ``number``: of
        the vertices of those that can be erased. What makes a stream and what it is added to is needed: both cannot
        vanish."""
        flow = self._found.flow
        number = {vertex: place for vertex, place in number.items() if not self._is_stream(place)}
        found: dict[int, frozenset[int]] = {}
        for vertex in reversed(rx.topological_sort(flow.graph)):
            if vertex in number:
                found[vertex] = frozenset({number[vertex]})
                continue
            behind = flow.graph.successor_indices(vertex)
            if behind and all(one in found for one in behind):
                union = self._outermost(frozenset().union(*(found[one] for one in behind)))
                if len(union) <= _MOST_SERVED:
                    found[vertex] = union
        return {vertex: tuple(sorted(served)) for vertex, served in found.items()}

    def _is_stream(self, place: int) -> bool:
        """Whether a structure is a stream that is added, with which no operator vanishes."""
        one = self.listed[place]
        return not one.operators and not one.concatenated

    def _outermost(self, numbers: Collection[int]) -> frozenset[int]:
        """Without those that are in another: it takes them along."""
        return frozenset(one for one in numbers if not any(outer in numbers for outer in self.around(one)[1:]))

    def _numbered(self) -> dict[int, int]:
        """The structures that can be erased, by the component that their parts of concatenations lie in."""
        number = {vertex: place for place, vertex in self._operand.items() if self.listed[place].erasable}
        components = self._found.reading.components.items()
        return {component: number[vertex] for component, vertex in components if vertex in number}

    def _parts(self, homes: Mapping[str, int]) -> dict[int, list[TensorPart]]:
        """What goes with the part that a structure has of a concatenation. If it is not zero by itself, what reads it
        has to be; if nothing that is trained makes it zero, what reads it decides about it. ``homes``: of tensors."""
        values = self._found.graph.values
        found: dict[int, list[TensorPart]] = {}
        for number in self._numbered().values():
            read = [
                part
                for part in self._found.reading.parts(self._operand[number])
                for home in [homes.get(values[part.value].name)]
                if home is None or number not in self.around(home)
            ]
            made = any(part.role.produces and values[part.value].origin is Origin.PARAMETER for part in read)
            for part in read:
                role, value = part.role, values[part.value]
                if role.consumes and not self.listed[number].producers:
                    role = Role.ZEROED_CONSUMER if made else Role.PRODUCER
                parameter = value.origin is Origin.PARAMETER
                found.setdefault(number, []).append(TensorPart(value.name, part.dim, part.positions, role, parameter))
        return found

    def _living(self, erased: Collection[int]) -> set[int]:
        """The vertices that reach an output without the operands ``erased``."""
        graph, sink = self._found.flow.graph, self._found.flow.sink
        seen, waiting = {sink}, [sink]
        while waiting:
            for maker in graph.predecessor_indices(waiting.pop()):
                if maker not in seen and maker not in erased:
                    seen.add(maker)
                    waiting.append(maker)
        return seen
