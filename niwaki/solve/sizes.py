"""Find out which attributes let the numbers in Python follow a cut; tie or pin the groups where none does.

The equations are not analysed but tried on random plans. Where one fails, its groups may still lose units together (two
halves of a chunk lose equally many): such a tie is a null vector of the equations' slopes. A single group may lose
several units at a time, or keep a least number (a size has to stay even, or above one). Otherwise the axis is pinned,
with the source line of the number as the reason.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from fractions import Fraction
from math import gcd, lcm

import numpy as np

from niwaki.core.counts import Counts, FloatArray, IntArray
from niwaki.core.numbers import Attribute, Combination, Count, Equation, Expression, Literal, Numbers, leaves
from niwaki.core.space import BoolArray, Tie
from niwaki.solve.axis_table import Tables
from niwaki.solve.groups import SolvedGroups
from niwaki.solve.masks import random_keep, separating_masks

_TRIALS = 6
_ENOUGH = 4
_LONGEST_STEP = 65  # some code asks for multiples of 64
_LATE = 1000  # equations about fixed numbers (a comparison, channels per group) decide an attribute last


def solve_sizes(units: SolvedGroups, tables: Tables) -> Numbers:
    """Tie or pin the groups that the numbers in Python cannot follow. Return the remaining equations."""
    rng = np.random.default_rng(0)
    _distinguish(units, tables)
    bound: set[int] = set()  # equations that hold only in a tie, by their numbers in ``tables``
    while True:
        if units.steps and not units.ties:
            _find_ties(units, tables, bound)
        counts = tables.counts(units)
        varies = counts.varies()
        numbers, known = equations_of(tables, varies)
        failing: set[int] = set()
        trials = itertools.chain(separating_masks(units, rng), (random_keep(units, rng) for _ in range(_TRIALS)))
        for number, keep in enumerate(trials, start=1):
            failing.update(numbers.solve(counts(keep.astype(np.float64)))[1])
            if failing and number >= _ENOUGH:  # other failures show in the next round
                break
        if not failing:
            return numbers
        new = {known[index] for index in failing} - bound
        if new:
            bound |= new
            _find_ties(units, tables, bound)
        else:
            if not _pin_failing(units, tables, sorted(failing), numbers, varies):
                return numbers
            units.regroup()
            bound = set()


def pin_unsolved(units: SolvedGroups, tables: Tables, keep: BoolArray) -> bool:
    """Pin the axes of numbers in Python that cannot follow the plan ``keep``; call `SolvedGroups.regroup` afterwards.
    Return whether any of them was free."""
    counts = tables.counts(units)
    varies = counts.varies()
    numbers, _ = equations_of(tables, varies)
    failing = numbers.solve(counts(keep.astype(np.float64)))[1]
    return _pin_failing(units, tables, failing, numbers, varies)


def _distinguish(units: SolvedGroups, tables: Tables) -> None:
    """Group only units that count equally in all equations, so that each part of a dimension keeps a unit."""
    axes = {equation.axis for equation in tables.equations if equation.axis is not None}
    axes.update(axis for inside in tables.leaves for axis in inside.axes)
    which = np.isin(tables.axis, sorted(axes))
    units.split_by_count(tables.rows[which], tables.axis[which], tables.times[which])


def _find_ties(units: SolvedGroups, tables: Tables, bound: Collection[int]) -> None:
    """Find ties that keep all ``bound`` equations true: for each group, the whole number of units in one step."""
    counts = tables.counts(units)
    varies = counts.varies()
    numbers, known = equations_of(tables, varies)
    chosen = [index for index, number in enumerate(known) if number in bound]
    slopes = _Slopes(numbers, counts, units.starts)
    matrix = np.array([slopes.residual(index) for index in chosen]).reshape(len(chosen), len(units.starts) - 1)
    ties = []
    for rows, groups in _blocks(matrix):
        sizes = np.diff(units.starts)[groups]
        steps = _null_step(matrix[np.ix_(rows, groups)], sizes)
        if steps is not None:
            most = int(((sizes - 1) // steps).min())
            ties.append(Tie(tuple(groups.tolist()), tuple(steps.tolist()), most))
    taken = {group for tie in ties for group in tie.groups}
    alone: dict[int, list[int]] = {}  # group -> equations that depend on no other group
    for index in chosen:
        groups = slopes.groups_of(numbers.axes_of([index]))
        if len(groups) == 1 and groups[0] not in taken:
            alone.setdefault(int(groups[0]), []).append(index)
    for group, equations in alone.items():
        tie = _alone(numbers, equations, slopes, group, int(units.starts[group + 1] - units.starts[group]))
        ties += [] if tie is None else [tie]
    remainders = [slopes.remainder(index) for index in chosen]
    units.ties = tuple(_in_steps(ties, remainders, units.multiples(), np.diff(units.starts)))


def _in_steps(
    ties: Sequence[Tie],
    remainders: Sequence[tuple[FloatArray, int] | None],
    multiples: IntArray,
    sizes: IntArray,
) -> list[Tie]:
    """Lengthen steps until what must remain a multiple does. ``remainders``: how much such a number changes per unit
    lost of each group, and its modulus. Groups that are too small to lose their ``multiples`` stay whole."""
    in_a_tie = {group for tie in ties for group in tie.groups}
    others = {group for slope, _ in filter(None, remainders) for group in np.flatnonzero(slope).tolist()} - in_a_tie
    others |= set(np.flatnonzero(multiples > 1).tolist()) - in_a_tie
    lengthened = []
    for tie in [*ties, *(Tie((group,), (1,), int(sizes[group]) - 1) for group in sorted(others))]:
        step, times = np.array(tie.steps), 1
        for slope, modulus in filter(None, remainders):
            lost = round(float(slope[list(tie.groups)] @ step)) * times
            times *= modulus // gcd(modulus, lost)
        held = multiples[list(tie.groups)]
        times = lcm(times, *(held // np.gcd(held, step)).tolist())
        if tie.most >= times or (held > 1).any():
            lengthened.append(Tie(tie.groups, tuple((step * times).tolist()), tie.most // times))
    return lengthened


def _alone(numbers: Numbers, equations: Collection[int], slopes: _Slopes, group: int, size: int) -> Tie | None:
    """The tie of one group of ``size`` units: the smallest step that keeps some equations true, and how often it can be
    taken. None if there is no such step."""

    def holds(lost: int) -> bool:
        return _hold(numbers, equations, slopes.counts_without(group, lost))

    step = next(filter(holds, range(1, min(size, _LONGEST_STEP))), None)
    if step is None:
        return None
    end = next(itertools.filterfalse(holds, range(2 * step, size, step)), size - 1 + step)
    return Tie((group,), (step,), end // step - 1)


def _hold(numbers: Numbers, equations: Collection[int], counts: FloatArray) -> bool:
    """Whether some equations hold for ``counts``."""
    order = sorted(numbers.reached(equations))
    position = {index: new for new, index in enumerate(order)}
    deciding = {attribute: position[index] for attribute, index in numbers.deciding.items() if index in position}
    _, failing = Numbers(tuple(numbers.equations[index] for index in order), deciding).solve(counts)
    return not {position[index] for index in equations} & set(failing)


def _blocks(matrix: FloatArray) -> list[tuple[IntArray, IntArray]]:
    """Split a matrix into independent blocks of rows and columns."""
    left = set(np.flatnonzero((matrix != 0).any(axis=1)).tolist())
    blocks = []
    while left:
        rows = {left.pop()}
        while True:
            columns = np.flatnonzero((matrix[sorted(rows)] != 0).any(axis=0))
            more = {row for row in left if (matrix[row, columns] != 0).any()}
            if not more:
                break
            rows |= more
            left -= more
        blocks.append((np.array(sorted(rows)), columns))
    return blocks


def _null_step(matrix: FloatArray, sizes: IntArray) -> IntArray | None:
    """Find positive whole numbers x with matrix @ x = 0: the null vector if it is unique, else equal shares."""
    _, values, vectors = np.linalg.svd(matrix)
    rank = int((values > 1e-9 * max(1.0, float(values.max(initial=0)))).sum())
    candidates = [sizes // gcd(*sizes.tolist())]
    if matrix.shape[1] - rank == 1:
        vector = vectors[-1] / np.abs(vectors[-1]).max()
        vector = vector * np.sign(vector[0])
        fractions = [_fraction(float(value)) for value in vector]
        common = lcm(*(denominator for _, denominator in fractions))
        whole = np.array([numerator * (common // denominator) for numerator, denominator in fractions])
        if (whole > 0).all():
            candidates.insert(0, whole // gcd(*whole.tolist()))
    for steps in candidates:
        if np.abs(matrix @ steps).max() < 1e-6 and (steps < sizes).all():
            return steps.astype(np.int64)
    return None


def _fraction(value: float) -> tuple[int, int]:
    return Fraction(value).limit_denominator(4096).as_integer_ratio()


class _Slopes:
    """Derivatives by the number of units that each group has lost; divisions count as exact."""

    def __init__(self, numbers: Numbers, counts: Counts, starts: IntArray) -> None:
        self._numbers = numbers
        self._groups = len(starts) - 1
        axis, unit, value = counts.slopes(np.ones(counts.num_units))
        self._axis = np.zeros((counts.num_axes, self._groups))
        first = np.isin(unit, starts[:-1])
        group = np.searchsorted(starts, unit[first], side="right") - 1
        np.add.at(self._axis, (axis[first], group), -value[first])
        self._full = counts(np.ones(counts.num_units))
        self._attributes: dict[Attribute, FloatArray] = {}
        for attribute, index in numbers.deciding.items():
            self._attributes[attribute] = self._solved(attribute, numbers.equations[index])

    def groups_of(self, axes: Collection[int]) -> IntArray:
        """The groups that some axes depend on."""
        return np.flatnonzero((self._axis[sorted(axes)] != 0).any(axis=0))

    def counts_without(self, group: int, lost: int) -> FloatArray:
        """The positions left on every axis when ``lost`` units of a group are gone."""
        left: FloatArray = self._full + lost * self._axis[:, group]
        return left

    def residual(self, index: int) -> FloatArray:
        """How far an equation is from being true, per unit lost of each group, [groups]."""
        equation = self._numbers.equations[index]
        target = np.zeros(self._groups) if equation.axis is None else self._axis[equation.axis]
        return np.round(self._of(equation.expression) - target, 9).astype(np.float64)

    def remainder(self, index: int) -> tuple[FloatArray, int] | None:
        """For an equation "a number modulo a literal is 0": how the number changes with the units lost, and the
        literal. None for any other equation."""
        expression = self._numbers.equations[index].expression
        if not isinstance(expression, Combination) or (expression.symbol, expression.value) != ("%", 0):
            return None
        return (self._of(expression.left), expression.right.value) if isinstance(expression.right, Literal) else None

    def _solved(self, attribute: Attribute, equation: Equation[int]) -> FloatArray:
        nothing = np.zeros(self._groups)
        self._attributes[attribute] = nothing
        rest = self._of(equation.expression)
        self._attributes[attribute] = np.ones(self._groups)
        by_attribute = self._of(equation.expression) - rest
        target = nothing if equation.axis is None else self._axis[equation.axis]
        solved: FloatArray = np.divide(target - rest, by_attribute, out=nothing, where=by_attribute != 0)
        return solved

    def _of(self, expression: Expression) -> FloatArray:
        if isinstance(expression, Attribute):
            return self._attributes.get(expression, np.zeros(self._groups))
        if isinstance(expression, Count):
            assert isinstance(expression.axis, int)
            return np.asarray(self._axis[expression.axis], dtype=np.float64)
        if not isinstance(expression, Combination):
            return np.zeros(self._groups)
        left, right = self._of(expression.left), self._of(expression.right)
        a, b = expression.left.value, expression.right.value
        if expression.symbol == "+":
            return left + right
        if expression.symbol == "-":
            return left - right
        if expression.symbol == "*":
            return left * b + a * right
        if expression.symbol == "//" and b:
            return (left * b - a * right) / b**2
        return np.zeros(self._groups)


def equations_of(tables: Tables, varies: BoolArray) -> tuple[Numbers, list[int]]:
    """The equations that a cut could break, and the index of each in ``tables``. Each attribute is decided by its
    simplest equation that varies."""
    moving: list[bool] = varies.tolist()
    deciding: dict[Attribute, tuple[int, int]] = {}
    for index, (equation, inside) in enumerate(zip(tables.equations, tables.leaves, strict=True)):
        moves = equation.axis is not None and moving[equation.axis]
        if inside.attributes and (moves or any(moving[axis] for axis in inside.axes)):
            for attribute in inside.attributes:
                late = 0 if moves else _LATE
                rank = 0 if equation.expression == attribute else inside.number + late
                if attribute not in deciding or rank < deciding[attribute][0]:
                    deciding[attribute] = (rank, index)
    relevant: list[int] = []
    position: dict[int, int] = {}
    for index, (equation, inside) in enumerate(zip(tables.equations, tables.leaves, strict=True)):
        moves = equation.axis is not None and moving[equation.axis]
        if (
            moves
            or any(moving[axis] for axis in inside.axes)
            or any(attribute in deciding for attribute in inside.attributes)
        ):
            position[index] = len(relevant)
            relevant.append(index)
    decided = {attribute: position[index] for attribute, (_, index) in sorted(deciding.items(), key=lambda i: i[1])}
    return Numbers(tuple([tables.equations[index] for index in relevant]), decided), relevant


def _pin_failing(
    units: SolvedGroups, tables: Tables, failing: Sequence[int], numbers: Numbers, varies: BoolArray
) -> bool:
    """Pin the axis of each failing equation, or else the axes that its numbers depend on."""
    pinned = False
    for index in failing:
        equation = numbers.equations[index]
        if equation.axis is not None and varies[equation.axis]:
            axes = {equation.axis}
        else:
            counted = {leaf.axis for leaf in leaves(equation.expression) if isinstance(leaf, Count)}
            axes = {axis for axis in counted if isinstance(axis, int) and varies[axis]}
            axes = axes or numbers.axes_of([index])
        why = units.constraints.reason(
            f"{equation.what} is computed as {equation.expression}, which cannot follow a cut"
            + _because(equation.expression, varies),
            equation.location,
        )
        for axis in axes:
            pinned |= units.pin(tables.rows_of(axis)[0].reshape(-1), why)
    return pinned


def _because(expression: Expression, varies: BoolArray) -> str:
    """Explain a number that is read from a shape that does not vary: no attribute can change it."""
    for leaf in leaves(expression):
        if isinstance(leaf, Count) and isinstance(leaf.axis, int) and not varies[leaf.axis]:
            why = "is read from a shape that no attribute decides. The graph-level cut can change it (as_graph=True)"
            return f": {leaf} {why}"
    return ""
