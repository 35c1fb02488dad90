"""Build the search space from solved groups, equations and tables: groups, pins, costs, coverage."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from niwaki.core.cost import CostModel, OperatorWork, PeakMemory, Terms
from niwaki.core.counts import IntArray
from niwaki.core.integrations import Multiple
from niwaki.core.location import Location
from niwaki.core.numbers import Numbers
from niwaki.core.plan import tensor_shapes
from niwaki.core.repairs import Factor, Repairs, Scalar, ScalarRule, TensorRule
from niwaki.core.space import BoolArray, Group, Pin, SearchSpace
from niwaki.core.structures import Erasures
from niwaki.core.tensor_dims import Role, TensorDim, slices_by_group
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.solve.axis_table import Tables, pad
from niwaki.solve.gates import Homes, with_structures
from niwaki.solve.groups import SolvedGroups
from niwaki.solve.required import required
from niwaki.solve.sizes import pin_unsolved, solve_sizes
from niwaki.solve.unreached import infer_from_siblings
from niwaki.solve.unread import unread
from niwaki.trace.graph import Graph

_PAIR = 2


class Builder:
    """Keeps a solved graph, so that more can be pinned before the search space is built from it."""

    def __init__(
        self,
        model: torch.nn.Module,
        graph: Graph,
        constraints: Constraints,
        inner: bool = False,
        looked_after: Sequence[object] = (),
    ) -> None:
        """``looked_after``: objects on modules whose numbers an integration updates after a cut."""
        self._model, self._looked_after = model, looked_after
        infer_from_siblings(model, graph, constraints)
        self.units = SolvedGroups(graph, constraints, inner)
        self._tables = Tables(self.units)
        self._pin_contradicting_repairs()
        self._numbers = solve_sizes(self.units, self._tables)
        self._space: SearchSpace | None = None  # the present space
        self.copy_fault: str | None = None  # what a copy of the model does otherwise, if a rehearsal found that

    def _pin_contradicting_repairs(self) -> None:
        """Pin what would need a parameter or attribute to be repaired in two different ways."""
        found: dict[int | Scalar, tuple[object, ...]] = {}
        for claim, factors in self._tables.repairs:
            wanted = (
                claim.shift,
                *(
                    (np.sort(np.repeat(*self._tables.rows_of(axis), axis=0), axis=0).tobytes(), power)
                    for axis, _, power in factors
                ),
            )
            if found.setdefault(claim.target, wanted) != wanted:
                for other in self.units.constraints.repairs:
                    if other.target == claim.target:
                        for scale in other.scale:
                            self.units.pin_axis(scale.axis, scale.why)
        self.units.regroup()

    def _repairs(self) -> Repairs:
        tensors: dict[int, TensorRule] = {}
        scalars: dict[Scalar, ScalarRule] = {}
        for claim, wanted in self._tables.repairs:
            factors = tuple(Factor(*given) for given in wanted)
            if isinstance(claim.target, Scalar):
                scalars[claim.target] = ScalarRule(claim.target, factors)
            else:
                name = self.units.graph.values[claim.target].name
                tensors[claim.target] = TensorRule(name, claim.shift, factors)
        return Repairs(tuple(tensors.values()), tuple(scalars.values()))

    def frees(self, axes: Iterable[Axis], pairs: bool = False) -> bool:
        """Whether any unit on some axes can still be removed (``pairs``: one of a group of two)."""
        return any(bool(self._on(axis, pairs).any()) for axis in axes)

    def groups_on(self, axes: Iterable[Axis]) -> set[int]:
        """The numbers of the groups with units on some axes."""
        found = [self.units.of_components(self.units.on(axis)).reshape(-1) for axis in axes if axis.free]
        numbers = np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *found]))
        groups = np.searchsorted(self.units.starts, numbers[numbers < len(self.units)], side="right") - 1
        return set(groups.tolist())

    def pin_axes(self, blamed: Iterable[tuple[Iterable[Axis], str, Location | None]], pairs: bool = False) -> bool:
        """Pin the units on axes for the given reasons (``pairs``: only units of groups of two). Return whether any of
        them was free."""
        found = False
        for axes, text, location in blamed:
            why = self.units.constraints.reason(text, location)
            for axis in axes:
                found |= self.units.pin(self._on(axis, pairs), why)
        if found:
            self._settle()
        return found

    def pin_failing(self, keep: BoolArray) -> bool:
        """Pin the axes of numbers in Python that cannot follow the plan ``keep``. Return whether any of them was
        free."""
        found = pin_unsolved(self.units, self._tables, keep)
        if found:
            self._settle()
        return found

    def hold_steps(self, key: Hashable, axes: Sequence[Axis], step: int, text: str, location: Location | None) -> bool:
        """Make axes lose multiples of ``step`` positions until ``key`` is released. Return whether that is a new
        condition and some group is large enough to fulfil it."""
        units = self.units
        rows = [units.on(axis) for axis in axes if axis.free]
        if not units.steps.hold(key, rows, step, units.constraints.reason(text, location)):
            return False
        groups = sorted(self.groups_on(axes))
        multiples = units.multiples()[groups]
        if not ((multiples > 1) & (multiples < np.diff(units.starts)[groups])).any():
            units.steps.release(key)
            return False
        self._settle()
        return True

    def release_steps(self, key: Hashable) -> None:
        """Take back what `hold_steps` asked for."""
        self.units.steps.release(key)
        self._settle()

    def pin_whole(self) -> None:
        """Pin the units of groups that are too small to lose even one of their steps."""
        units = self.units
        whole = [group for tie in units.ties if tie.most == 0 for group in tie.groups]
        multiples = units.multiples()
        for members in [units.members(group) for group in whole if multiples[group] > 1]:
            units.pin(members, units.steps.why(int(members[0])))
        if whole:
            self._settle()

    def _on(self, axis: Axis, pairs: bool) -> IntArray:
        """The components of the units on an axis."""
        if not axis.free:
            return np.zeros(0, dtype=np.int64)
        rows = self.units.on(axis).reshape(-1)
        rows = rows[rows != 0]
        if pairs:
            group = np.searchsorted(self.units.starts, self.units.of_components(rows), side="right") - 1
            rows = rows[np.diff(self.units.starts)[group] == _PAIR]
        return np.asarray(rows, dtype=np.int64)

    def _settle(self) -> None:
        self.units.regroup()
        self._numbers = solve_sizes(self.units, self._tables)
        self._space = None

    def pin_everything(self, text: str) -> None:
        """Give up on all units."""
        self.units.pin_all(self.units.constraints.reason(text, None))
        self._settle()

    def space(self) -> SearchSpace:
        """The search space of the present units."""
        if self._space is None:
            self._space = self._made()
        return self._space

    def finished(self, notes: Sequence[str], multiples: Sequence[Multiple]) -> SearchSpace:
        """The search space for the user, whose plans all fulfil ``multiples``; ``notes`` come before its own."""
        space = self.space()
        wanted = required(multiples, self._tables.lengths, {s.name: s.shape for s in space.shapes})
        numbers = Numbers((*space.numbers.equations, *wanted), space.numbers.deciding)
        return replace(space, numbers=numbers, notes=(*notes, *space.notes))

    def erasable(self, space: SearchSpace, erasures: Erasures, homes: Homes) -> SearchSpace:
        """Add the structures of ``erasures`` that can be erased to a finished ``space``, as groups of one unit."""
        return with_structures(space, self.units, self._tables, erasures, homes)

    def _made(self) -> SearchSpace:
        units, tables = self.units, self._tables
        dims = _dims(units)
        alive = [one for one, _ in tables.activations]
        activations = PeakMemory(
            _terms([term for _, term in tables.activations], tables.num_axes),
            np.array([one.born for one in alive], np.int64),
            np.array([one.died for one in alive], np.int64),
        )
        numbered = [(number, term) for number, (_, terms) in enumerate(tables.work) for term in terms]
        work = OperatorWork(
            tuple(name for name, _ in tables.work),
            _terms([term for _, term in numbered], tables.num_axes),
            np.array([number for number, _ in numbered], np.int64),
        )
        counts = tables.counts(units)
        remembered = unread(
            units.graph, units.constraints, self._model, tables.lengths, counts.varies(), self._looked_after
        )
        return SearchSpace(
            model=self._model,
            groups=_groups(dims, units),
            ties=units.ties,
            dims=dims,
            pins=_pins(units),
            coverage=_coverage(units),
            shapes=tensor_shapes(self._model),
            cost_model=CostModel(
                counts,
                _terms(tables.params, tables.num_axes),
                _terms(tables.macs, tables.num_axes),
                _terms(tables.memory, tables.num_axes),
                activations if alive else None,
                work if tables.work else None,
                macs_of=tables.macs_of,
            ),
            numbers=remembered.joined(self._numbers),
            notes=remembered.notes,
            repairs=self._repairs(),
        )


def _terms(sums: Sequence[tuple[float, Sequence[int]]], num_axes: int) -> Terms:
    return Terms(np.array([constant for constant, _ in sums]), pad([axes for _, axes in sums], num_axes))


def _dims(units: SolvedGroups) -> tuple[TensorDim, ...]:
    """The dimensions in which units own positions. Where nothing produces a unit, its consumers count as producers."""
    none = len(units)
    produced = np.zeros(none + 1, dtype=bool)
    done: set[int] = set()  # by the identity of the array, which tied dimensions share
    for dim in units.dims:
        owner = units.owners(dim)
        if dim.role.produces and dim.parameter and id(owner) not in done:
            done.add(id(owner))
            produced[owner.reshape(-1)] = True
    produced[none] = True
    complete: dict[int, bool] = {}
    found = []
    for dim in units.dims:
        owner = units.owners(dim)
        if owner.shape[1]:
            if id(owner) not in complete:
                complete[id(owner)] = bool(produced[owner].all())
            orphan = dim.parameter and dim.role is not Role.DIRECTION and not complete[id(owner)]
            role = Role.PRODUCER if orphan else dim.role
            found.append(TensorDim(dim.value.name, dim.dim, owner, role, dim.parameter))
    return tuple(found)


def _groups(dims: Sequence[TensorDim], units: SolvedGroups) -> tuple[Group, ...]:
    names: Counter[str] = Counter()
    made = []
    starts = units.starts
    for number, slices in enumerate(slices_by_group(dims, starts)):
        first, end = starts[number : number + 2].tolist()
        name = next((piece for piece in slices if piece.role.produces), slices[0]).tensor.removesuffix(".weight")
        names[name] += 1
        name = name if names[name] == 1 else f"{name}#{names[name]}"
        made.append(Group(name, first, end - first, slices, _inexact(units, number)))
    return tuple(made)


def _inexact(units: SolvedGroups, group: int) -> str | None:
    why = units.inexact(group)
    if why is None:
        return None
    reason = units.constraints.reasons[why]
    return reason.text + (f" at {reason.location}" if reason.location else "")


def _pins(units: SolvedGroups) -> tuple[Pin, ...]:
    pins = []
    for dim in units.dims:
        if not dim.parameter or (free := units.free(dim)).all():
            continue
        numbers, counts = np.unique(units.reasons(dim)[~free], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            reason = units.constraints.reasons[number]
            pins.append(Pin(dim.value.name, dim.dim, count, reason.text, reason.location))
    return tuple(pins)


def _coverage(units: SolvedGroups) -> float:
    """The share of parameter entries that lie in a unit along at least one dimension."""
    outside: dict[int, float] = {}
    for dim in units.dims:
        if dim.parameter:
            share = 1 - float(units.free(dim).mean()) if len(dim.rows) else 1.0
            outside[dim.value.number] = outside.get(dim.value.number, 1.0) * share
    sizes = {number: math.prod(units.graph.values[number].shape) for number in outside}
    everything = sum(sizes.values())
    return sum(sizes[number] * (1 - share) for number, share in outside.items()) / max(everything, 1)
