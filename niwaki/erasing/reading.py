"""What reads the parts that structures have of concatenations: which slices of which tensors go with each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from niwaki.core.counts import IntArray
from niwaki.core.tensor_dims import Role
from niwaki.erasing.concatenation import Concatenated, RunFlow
from niwaki.erasing.flow import CONCATENATIONS
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.rules.label import Label
from niwaki.rules.zeros import PRODUCTS
from niwaki.solve.components import Components, solve
from niwaki.solve.groups import role_of
from niwaki.trace.graph import Graph, Node, Origin, Ref

Given = Mapping[int, tuple[Label | None, ...]]
_NONE: frozenset[int] = frozenset()
_STAYS = "what it is a part of is tied to something that stays"
_BARE = "what reads the concatenation has no weights there, and it is not zero by itself"


@dataclass(frozen=True, slots=True, eq=False)
class ReadPart:
    """Positions of dimension ``dim`` of parameter or buffer ``value`` that go with a structure: what they are to it."""

    value: int
    dim: int
    positions: IntArray
    role: Role


class Reading:
    """Follows the parts of structures from their concatenations to the weights that read them, in all runs.

    The rules have equated every position behind a concatenation with one that has the id of the structure as well as
    those of its units, so that the solution tells for each dimension of each tensor where parts of the structure are.
    It does not tell whether they are there because the part gets there, or because something that stays is tied to it:
    a part *comes* from the concatenation, from operator to operator, until weights read it. What else has positions of
    it, such as the last layer of a gate, must be multiplied by what comes.
    """

    def __init__(
        self,
        graph: Graph,
        constraints: Constraints,
        given: Sequence[Given],
        flows: Sequence[RunFlow],
        joined: Concatenated,
    ) -> None:
        self._graph, self._constraints, self._joined = graph, constraints, joined
        self._solved = solve(constraints, structures=True) if constraints.absent else None
        self._refused: dict[int, str] = dict(joined.refused)
        self._bare: set[int] = set()
        self._structure = self._components()
        self._is_structure = np.zeros(0 if self._solved is None else self._solved.size, dtype=bool)
        self._is_structure[list(self._structure)] = True
        self._known: dict[int, tuple[IntArray, frozenset[int]]] = {}
        self._parts = self._find_parts()
        if self._structure:
            first = 0
            for labels, known in zip(given, flows, strict=True):
                _Follower(self, labels, known, first).follow()
                first += len(known.run.nodes)

    @property
    def solution(self) -> Components | None:
        """The components, of which ``components`` are some; None where nothing may vanish from a concatenation."""
        return self._solved

    @property
    def _solution(self) -> Components:
        assert self._solved is not None
        return self._solved

    @property
    def components(self) -> Mapping[int, int]:
        """Structures by the component that all their parts lie in."""
        return self._structure

    def why_not(self, structure: int, zero: bool) -> str | None:
        """Why the parts of a structure cannot vanish from what reads them; None if they can. ``zero``: they are zero
        where its producers are."""
        if structure in self._refused:
            return self._refused[structure]
        if structure not in self._structure.values():
            return "what it is concatenated with cannot lose anything"
        return _BARE if structure in self._bare and not zero else None

    def parts(self, structure: int) -> Sequence[ReadPart]:
        """The slices that go with a structure, its own tensors included."""
        return self._parts.get(structure, [])

    def refuse(self, structures: frozenset[int], why: str) -> None:
        """Keep structures, because ``why``, unless there is a reason already."""
        for structure in structures:
            self._refused.setdefault(structure, why)

    def read_bare(self, structures: frozenset[int]) -> None:
        """Take note that something without weights reads parts of structures."""
        self._bare |= structures

    def of(self, axis: Axis) -> frozenset[int]:
        """The structures that have parts of an axis."""
        if not axis.free:
            return _NONE
        known = self._known.get(id(axis.ids))
        if known is None:
            rows = self._solution.canonical(axis.ids)
            own = frozenset(map(self._structure.__getitem__, set(rows[self._is_structure[rows]].tolist())))
            known = self._known[id(axis.ids)] = axis.ids, own
        return known[1]

    def of_label(self, label: Label | None) -> frozenset[int]:
        """The structures that have parts of any axis of a tensor."""
        return _NONE if label is None else _NONE.union(*map(self.of, label.axes))

    def touched(self, number: int) -> tuple[Axis, ...]:
        """All axes of the tensors of an operator, numbered through all runs."""
        return tuple(self._constraints.touched[number].axes)

    def is_parameter(self, number: int) -> bool:
        """Whether a value is a parameter or a buffer."""
        return self._graph.values[number].origin in (Origin.PARAMETER, Origin.BUFFER)

    @property
    def operands(self) -> Mapping[Node, Mapping[int, int]]:
        """The structures that concatenations are given, by position."""
        return self._joined.operands

    def rank(self, number: int) -> int:
        """The number of dimensions of a value."""
        return len(self._graph.values[number].shape)

    def _components(self) -> dict[int, int]:
        """The component of each structure that can vanish for itself."""
        found: dict[int, int] = {}
        inexact = {int(one): why for ids, why in self._constraints.inexact for one in ids}
        for structure, absent in self._constraints.absent.items():
            rows = self._solution.canonical(np.array([[absent]]))
            if not rows.any():
                reason = self._constraints.reasons[int(self._solution.reasons(np.array([absent]))[0])]
                at = f" at {reason.location.brief}" if reason.location else ""
                self._refused.setdefault(structure, f"its part of the concatenation has to stay: {reason.text}{at}")
            elif absent in inexact:
                self._refused.setdefault(structure, self._constraints.reasons[inexact[absent]].text)
            elif rows.size > 1:
                self._refused.setdefault(structure, _STAYS)
            elif int(rows[0, 0]) in found:
                self.refuse(
                    frozenset({structure, found[int(rows[0, 0])]}), "it is tied to a part of another concatenation"
                )
            else:
                found[int(rows[0, 0])] = structure
        return found

    def _find_parts(self) -> dict[int, list[ReadPart]]:
        found: dict[int, list[ReadPart]] = {}
        if not self._structure:
            return found
        blocks = {int(block[0]): block for block in self._constraints.blocks if len(block)}
        marked = self._constraints.marked()
        for (number, dim), (first, size) in self._constraints.ids_of.items():
            rows = self._solution.canonical(blocks[first][:, None]) if size else np.zeros((0, 1), np.int64)
            some = self._is_structure[rows].any(axis=0)
            if not some.any():
                continue
            role = role_of({mark for mark, ids in marked.items() if ids[first : first + size].any()})
            for column in rows.T[some]:
                for component in set(column[self._is_structure[column]].tolist()):
                    positions = np.flatnonzero(column == component)
                    found.setdefault(self._structure[component], []).append(ReadPart(number, dim, positions, role))
        return found


class _Follower:
    """Follows parts through one run. ``first``: the number of its first operator through all runs."""

    def __init__(self, reading: Reading, labels: Given, known: RunFlow, first: int) -> None:
        self._reading, self._labels, self._run, self._first = reading, labels, known, first
        self._comes: dict[int, frozenset[int]] = {}  # value -> the structures whose parts come with it
        self._weights: set[int] = set()  # values made of parameters and buffers alone
        self._within = self._insides()

    def _insides(self) -> dict[int, frozenset[int]]:
        """The structures that each operator vanishes with."""
        found: dict[int, set[int]] = {}
        flow, nesting = self._run.flow, self._run.nesting
        for place in flow.joins.keys() - flow.bypasses.keys():
            for position, structure in self._reading.operands.get(self._run.run.nodes[place], {}).items():
                for end in flow.joins[place]:
                    if flow.operands[end].position == position:
                        for one in nesting.within(self._outer(end)) if end in nesting.place else ():
                            found.setdefault(one, set()).add(structure)
        return {one: frozenset(structures) for one, structures in found.items()}

    def _outer(self, end: int) -> int:
        """The fan that an operand belongs to, or itself."""
        around = self._run.nesting.around[end]
        return around if end in self._run.flow.fans.get(around, ()) else end

    def follow(self) -> None:
        """Follow all parts."""
        for place, node in enumerate(self._run.run.nodes):
            inputs = dict(zip(node.inputs(), self._labels[place], strict=True))
            self._weights.update(number for number in inputs if self._reading.is_parameter(number))
            outputs = [number for number in node.outputs if number is not None]
            made = self._made(place, outputs)
            if self._weights.issuperset(inputs):
                self._weights.update(outputs)
                continue
            comes = self._step(place, node, inputs, frozenset[int]().union(*made.values()))
            own = frozenset(self._reading.operands.get(node, {}).values())
            for number in outputs:
                self._comes[number] = made[number] & (comes | own)

    def _made(self, place: int, outputs: Sequence[int]) -> dict[int, frozenset[int]]:
        """The structures that have parts of each result of an operator."""
        axes = list(self._reading.touched(self._first + place))
        start = len(axes) - sum(map(self._reading.rank, outputs))
        found = {}
        for number in outputs:
            rank = self._reading.rank(number)
            found[number] = _NONE.union(*map(self._reading.of, axes[start : start + rank]))
            start += rank
        return found

    def _step(self, place: int, node: Node, inputs: Mapping[int, Label | None], made: frozenset[int]) -> frozenset[int]:
        """The structures whose parts come out of an operator."""
        has = {number: self._reading.of_label(label) for number, label in inputs.items()}
        every = frozenset[int]().union(*has.values()) - self._within.get(place, _NONE)
        if not every:
            return _NONE
        go_on: set[int] = set()
        for structure in every:
            holding = [number for number, own in has.items() if structure in own]
            coming = [number for number in holding if structure in self._comes.get(number, _NONE)]
            weights = [number for number in holding if number in self._weights]
            others = [number for number in holding if number not in coming and number not in weights]
            one = frozenset({structure})
            if coming and others and not self._multiplies(node, coming):
                self._reading.refuse(one, _STAYS)
            elif not coming and structure not in made:
                self._reading.refuse(one, _STAYS)  # what is tied to it is read without it
            elif coming and any(self._times(inputs[number], structure) > 1 for number in weights):
                pass  # weights read it, and make something that is tied to it
            elif coming and structure in made and (len(coming) == 1 or _entry_by_entry(node)):
                go_on.add(structure)
            elif coming and (structure in made or not weights):
                go_on |= one & made
                zero = all(self._zero(inputs[number], structure) for number in coming)
                if zero:
                    self._reading.read_bare(one)
                else:
                    self._reading.refuse(one, _BARE)
        return frozenset(go_on)

    def _multiplies(self, node: Node, coming: Sequence[int]) -> bool:
        """Whether an operator makes zeros where what comes is zero."""
        said = PRODUCTS.get(node.operator)
        if said is None:
            return False
        factors = {given.value for given in map(node.argument, said.factors) if isinstance(given, Ref)}
        plus = None if said.plus is None else node.argument(said.plus)
        return not factors.isdisjoint(coming) and (not isinstance(plus, Ref) or plus.value in coming)

    def _axes(self, label: Label | None, structure: int) -> Iterator[int]:
        for dim, axis in enumerate(() if label is None else label.axes):
            if structure in self._reading.of(axis):
                yield dim

    def _times(self, label: Label | None, structure: int) -> int:
        return len(list(self._axes(label, structure)))

    def _zero(self, label: Label | None, structure: int) -> bool:
        return label is not None and all(label.zero[dim] for dim in self._axes(label, structure))


def _entry_by_entry(node: Node) -> bool:
    """Whether an operator makes every entry of one entry of each tensor, or joins tensors."""
    return torch.Tag.pointwise in node.operator.tags or node.operator in CONCATENATIONS
