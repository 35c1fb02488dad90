"""Facts and their solution become a search space: units, groups, places, pins, costs, numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from niwaki.core.cost import CostModel, Terms
from niwaki.core.counts import Counts, IntArray
from niwaki.core.numbers import Attribute, Combination, Count, Equation, Expression, Numbers, leaves
from niwaki.core.plan import tensor_shapes
from niwaki.core.space import BoolArray, Group, Pin, Place, SearchSpace, Slice
from niwaki.rules.axis import Axis
from niwaki.solve.axes import AxisTable, count_rows, pad
from niwaki.solve.equations import Components, solve
from niwaki.solve.label import Facts
from niwaki.trace.graph import Graph, Origin, Value

_TRIALS = 6
_INNER = "it is the inner factor of a product whose outer factor (a head, a group) can be removed whole"
_ALONE = "it is the only unit of its kind"
_UNSEEN = "no forward pass reached this parameter; give an example call that does"


@dataclass(frozen=True, slots=True, eq=False)
class _Spot:
    """One dimension of one parameter or buffer, with the components of its positions."""

    value: Value
    dim: int
    ids: IntArray
    rows: IntArray
    produces: bool
    driven: bool


class Builder:
    """Holds what is pinned beyond the equations, and builds the space from it again whenever more is pinned."""

    def __init__(self, model: torch.nn.Module, graph: Graph, facts: Facts, inner: bool = False) -> None:
        self._model, self._graph, self._facts = model, graph, facts
        self._pin_unseen()
        self._solution: Components = solve(facts)
        self._pinned = np.zeros(facts.ids, dtype=bool)  # components
        self._pinned[0] = True
        self._why: dict[int, int] = {}  # component -> reason, for what was pinned after solving
        self._spots = self._find_spots()
        if not inner:
            self._hold_inner()
        self._group()
        self._hold_alone()
        self._tables()
        self._settle_numbers()

    def _pin_unseen(self) -> None:
        seen = {number for run in self._graph.runs for node in run.nodes for number in node.inputs()}
        why = self._facts.reason(_UNSEEN, None)
        for (number, _), (first, size) in self._facts.places.items():
            if number not in seen and self._graph.values[number].origin is Origin.PARAMETER:
                self._facts.pinned.append((np.arange(first, first + size), why))

    def _find_spots(self) -> list[_Spot]:
        facts = self._facts
        marks = {}
        for name, arrays in (("reads", facts.reads), ("drives", facts.drives), ("makes", facts.makes)):
            mark = np.zeros(facts.ids, dtype=bool)
            if arrays:
                mark[np.concatenate(arrays)] = True
            marks[name] = mark
        spots = []
        for (number, dim), (first, size) in facts.places.items():
            ids = np.arange(first, first + size)
            own = slice(first, first + size)
            produces = bool(not marks["reads"][own].any() or marks["makes"][own].any())
            driven = produces or bool(marks["drives"][own].any())
            rows = self._solution.canonical(ids[:, None])
            spots.append(_Spot(self._graph.values[number], dim, ids, rows, produces, driven))
        return spots

    def _active(self, rows: IntArray) -> IntArray:
        return np.where(self._pinned[rows], 0, rows)

    def _pin(self, components: IntArray, why: int) -> None:
        new = np.unique(components[~self._pinned[components]])
        self._pinned[new] = True
        self._why.update(dict.fromkeys(new.tolist(), why))

    def _hold_inner(self) -> None:
        """Where a position depends on several components, the outermost stays a unit."""
        why = self._facts.reason(_INNER, None)
        for spot in self._spots:
            rows = self._active(spot.rows)
            several = rows[(rows != 0).sum(axis=1) > 1]
            if len(several):
                later = (several != 0).cumsum(axis=1) > 1
                self._pin(several[later & (several != 0)], why)

    def _group(self) -> None:
        """Components with the same multiset of places form a group; groups are ordered by their first place."""
        components, places = [], []
        produced = np.zeros(self._facts.ids, dtype=bool)
        for number, spot in enumerate(self._spots):
            flat = self._active(spot.rows).reshape(-1)
            flat = flat[flat != 0]
            components.append(flat)
            places.append(np.full(len(flat), number))
            if spot.value.origin is Origin.PARAMETER:
                produced[flat] = True
        component, place = np.concatenate(components), np.concatenate(places)
        known = produced[component]
        component, place = component[known], place[known]
        units, index = np.unique(component, return_inverse=True)
        weights = np.random.default_rng(0).integers(1, 2**62, size=len(self._spots), dtype=np.int64)
        signature = np.zeros(len(units), dtype=np.int64)
        np.add.at(signature, index, weights[place])  # wraps around: a hash of the multiset
        first = np.full(len(units), len(self._spots))
        np.minimum.at(first, index, place)
        order = np.lexsort((units, signature, first))
        units, signature, first = units[order], signature[order], first[order]
        starts = np.flatnonzero(np.append(True, signature[1:] != signature[:-1])) if len(units) else np.zeros(0, int)
        self._units = units
        self._starts = np.append(starts, len(units)).astype(np.int64)
        self._first = first
        self._number = np.full(self._facts.ids, len(units), dtype=np.int64)
        self._number[units] = np.arange(len(units))

    def _hold_alone(self) -> None:
        sizes = np.diff(self._starts)
        if (sizes == 1).any():
            self._pin(self._units[self._starts[:-1][sizes == 1]], self._facts.reason(_ALONE, None))
            self._group()

    def _tables(self) -> None:
        """Number all axes that costs and sizes refer to."""
        facts, table = self._facts, AxisTable()
        self._ids_of: dict[tuple[int, int], IntArray] = {}
        self._claims = [
            (claim, self._numbered(claim.expression, table), None if claim.axis is None else table.number(claim.axis))
            for claim in facts.sizes
        ]
        self._macs = [(float(term.times), [table.number(axis) for axis in term.axes]) for term in facts.macs]
        params, memory = [], []
        for value in self._graph.values:
            label = facts.labels[value.number]
            if value.origin not in (Origin.PARAMETER, Origin.BUFFER) or label is None:
                continue
            axes = [
                table.number(Axis(self._spot_ids(value.number, dim))) for dim in range(len(value.shape))
            ]
            memory.append((float(value.dtype.itemsize), axes))
            if value.origin is Origin.PARAMETER:
                params.append((1.0, axes))
        self._params, self._memory = params, memory
        rows, self._row_axis = table.rows()
        self._rows = self._solution.canonical(rows) if len(rows) else rows
        self._num_axes = len(table)

    def _spot_ids(self, value: int, dim: int) -> IntArray:
        first, size = self._facts.places[value, dim]
        return self._ids_of.setdefault((value, dim), np.arange(first, first + size)[:, None])

    def _numbered(self, expression: Expression, table: AxisTable) -> Expression:
        if isinstance(expression, Combination):
            left, right = self._numbered(expression.left, table), self._numbered(expression.right, table)
            return Combination(expression.symbol, left, right, expression.value)
        if isinstance(expression, Count):
            assert isinstance(expression.axis, tuple)
            value, dim = expression.axis
            label = self._facts.labels[value]
            assert label is not None
            return Count(table.number(label.axes[dim]), expression.value)
        return expression

    def _counts(self) -> Counts:
        return count_rows(self._number[self._active(self._rows)], self._row_axis, self._num_axes, len(self._units))

    def _settle_numbers(self) -> None:
        """Pin what the numbers in Python cannot follow, as random plans tell."""
        rng = np.random.default_rng(0)
        while True:
            counts = self._counts()
            varies = np.zeros(self._num_axes, dtype=bool)
            varies[counts.axis[(counts.units < counts.num_units).any(axis=1)]] = True
            numbers, claims = self._equations(varies)
            failing: set[int] = set()
            for _ in range(_TRIALS):
                failing.update(numbers.solve(counts(self._random_gates(rng)))[1])
            self._numbers = numbers
            if not failing or not self._pin_failing(sorted(failing), numbers, claims, varies):
                break
            self._group()
            self._hold_alone()

    def _random_gates(self, rng: np.random.Generator) -> np.ndarray:
        gates = np.zeros(len(self._units))
        for start, end in zip(self._starts[:-1], self._starts[1:], strict=True):
            kept = rng.integers(1, end - start + 1)
            gates[start + rng.permutation(end - start)[:kept]] = 1
        return gates

    def _equations(self, varies: BoolArray) -> tuple[Numbers, list[int]]:
        """The equations that a cut could break, and the claim each comes from; attributes are decided by the plainest
        equation that varies."""
        deciding: dict[Attribute, tuple[int, int]] = {}
        for index, (_, expression, axis) in enumerate(self._claims):
            if axis is None or not varies[axis]:
                continue
            found = [leaf for leaf in leaves(expression) if isinstance(leaf, Attribute)]
            for attribute in found:
                rank = 0 if expression == attribute else len(list(leaves(expression)))
                if attribute not in deciding or rank < deciding[attribute][0]:
                    deciding[attribute] = (rank, index)
        relevant, claims, position = [], [], {}
        for index, (claim, expression, axis) in enumerate(self._claims):
            inside = list(leaves(expression))
            moves = (axis is not None and varies[axis]) or any(
                (isinstance(leaf, Count) and varies[leaf.axis]) or leaf in deciding for leaf in inside
            )
            if moves:
                position[index] = len(relevant)
                relevant.append(Equation(expression, axis, claim.what, claim.location))
                claims.append(index)
        decided = {attribute: position[index] for attribute, (_, index) in sorted(deciding.items(), key=lambda i: i[1])}
        return Numbers(tuple(relevant), decided), claims

    def _pin_failing(self, failing: Sequence[int], numbers: Numbers, claims: list[int], varies: BoolArray) -> bool:
        """Pin the axis of each failing equation, or else what its numbers depend on."""
        pinned = False
        for index in failing:
            equation = numbers.equations[index]
            if equation.axis is not None and varies[equation.axis]:
                axes = [equation.axis]
            else:
                axes = [leaf.axis for leaf in leaves(equation.expression) if isinstance(leaf, Count)]
                axes = [axis for axis in axes if varies[axis]] or [
                    numbers.equations[numbers.deciding[leaf]].axis or 0
                    for leaf in leaves(equation.expression)
                    if isinstance(leaf, Attribute) and leaf in numbers.deciding
                ]
            why = self._facts.reason(
                f"{equation.what} is computed as {equation.expression}, which cannot follow a cut", equation.location
            )
            for axis in axes:
                components = self._active(self._rows[self._row_axis == axis]).reshape(-1)
                components = components[components != 0]
                if len(components):
                    self._pin(components, why)
                    pinned = True
        return pinned

    def pin_axes(self, axes: Iterable[Axis], text: str, location: object) -> bool:
        """Pin more from outside; returns whether anything was still free."""
        why = self._facts.reason(text, location)  # type: ignore[arg-type]
        found = False
        for axis in axes:
            components = self._active(self._solution.canonical(axis.ids)).reshape(-1) if axis.free else np.zeros(0, int)
            components = components[self._number[components] < len(self._units)] if len(components) else components
            if len(components):
                self._pin(components, why)
                found = True
        if found:
            self._group()
            self._hold_alone()
            self._settle_numbers()
        return found

    @property
    def num_units(self) -> int:
        """How many units there are now."""
        return len(self._units)

    def random_keep(self, rng: np.random.Generator) -> BoolArray:
        """A random mask of units that keeps at least one of every group."""
        return self._random_gates(rng) > 0

    def pin_everything(self, text: str) -> None:
        """Give up on all units."""
        self._pin(self._units, self._facts.reason(text, None))
        self._group()
        self._settle_numbers()

    def expected(self, axis: Axis, keep: BoolArray) -> int:
        """Surviving positions of any axis of the graph for a mask of units."""
        return int(self.survivors(axis, keep).sum()) if axis.free else axis.size

    def survivors(self, axis: Axis, keep: BoolArray) -> BoolArray:
        """Which positions of an axis survive a mask of units."""
        units = self._number[self._active(self._solution.canonical(axis.ids))]
        return np.append(keep, True)[units].all(axis=1)

    def space(self, notes: Sequence[str] = ()) -> SearchSpace:
        """The search space as it stands."""
        places = self._places()
        counts = self._counts()
        model = CostModel(
            counts,
            *(
                Terms(np.array([c for c, _ in terms]), pad([axes for _, axes in terms], self._num_axes))
                for terms in (self._params, self._macs, self._memory)
            ),
        )
        groups = self._groups(places)
        return SearchSpace(
            model=self._model,
            groups=groups,
            places=places,
            pins=self._pins(),
            coverage=self._coverage(),
            shapes=tensor_shapes(self._model),
            cost_model=model,
            numbers=self._numbers,
            notes=tuple(notes),
        )

    def _places(self) -> tuple[Place, ...]:
        places = []
        makers: set[int] = set()
        for spot in self._spots:
            if spot.produces and spot.value.origin is Origin.PARAMETER:
                makers.update(self._number[self._active(spot.rows)].reshape(-1).tolist())
        for spot in self._spots:
            units = self._number[self._active(spot.rows)]
            units = units[:, (units < len(self._units)).any(axis=0)]
            if not units.shape[1]:
                continue
            parameter = spot.value.origin is Origin.PARAMETER
            orphan = parameter and not makers.issuperset(units[units < len(self._units)].tolist())
            produces, driven = spot.produces or orphan, spot.driven or orphan
            places.append(Place(spot.value.name, spot.dim, units, produces, driven, parameter))
        return tuple(places)

    def _groups(self, places: Sequence[Place]) -> tuple[Group, ...]:
        group_of = np.repeat(np.arange(len(self._starts) - 1), np.diff(self._starts))
        pieces: list[list[Slice]] = [[] for _ in range(len(self._starts) - 1)]
        for place in places:
            for column in place.units.T:
                positions = np.flatnonzero(column < len(self._units))
                order = positions[np.argsort(column[positions], kind="stable")]
                owners = column[order]
                owner_group = group_of[owners]
                for group in np.unique(owner_group):
                    mine = order[owner_group == group]
                    size = int(self._starts[group + 1] - self._starts[group])
                    pieces[group].append(
                        Slice(
                            place.tensor, place.dim, mine.reshape(size, -1), place.produces, place.driven, place.parameter
                        )
                    )
        used: Counter[str] = Counter()
        groups = []
        for number, slices in enumerate(pieces):
            first = next((piece for piece in slices if piece.produces), slices[0])
            name = first.tensor.removesuffix(".weight")
            used[name] += 1
            name = name if used[name] == 1 else f"{name}#{used[name]}"
            start, end = int(self._starts[number]), int(self._starts[number + 1])
            groups.append(Group(name, start, end - start, tuple(slices)))
        return tuple(groups)

    def _pins(self) -> tuple[Pin, ...]:
        pins = []
        for spot in self._spots:
            if spot.value.origin is not Origin.PARAMETER:
                continue
            rows = self._active(spot.rows)
            idle = np.flatnonzero(~(rows != 0).any(axis=1))
            if not len(idle):
                continue
            reasons: Counter[int] = Counter()
            for position in idle.tolist():
                late = [self._why[c] for c in spot.rows[position].tolist() if c in self._why]
                reasons[late[0] if late else int(self._solution.seed[spot.ids[position]])] += 1
            for why, count in reasons.items():
                reason = self._facts.reasons[why]
                pins.append(Pin(spot.value.name, spot.dim, count, reason.text, reason.location))
        return tuple(pins)

    def _coverage(self) -> float:
        covered, everything = 0.0, 0
        outside: dict[int, float] = {}
        for spot in self._spots:
            if spot.value.origin is Origin.PARAMETER:
                idle = 1 - (self._active(spot.rows) != 0).any(axis=1).mean() if len(spot.rows) else 1.0
                outside[spot.value.number] = outside.get(spot.value.number, 1.0) * float(idle)
        for number, share in outside.items():
            size = int(np.prod(self._graph.values[number].shape))
            covered += size * (1 - share)
            everything += size
        return covered / everything if everything else 0.0
