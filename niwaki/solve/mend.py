"""Mend what a dry run breaks, in all similar layers: remove units in steps only, or pin them."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator

from niwaki.core.location import Location
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.solve.blame import Blame
from niwaki.solve.build import Builder
from niwaki.solve.compare import Problem
from niwaki.trace.graph import Graph

_STEPS = (2, 4, 8)
_LEVELS = 3  # dimensions on which steps are tried, before an operator that fails
_STEP_TRIALS = 15  # steps tried, for all kinds of operators together
_NEAR = 50  # operators before one that fails, whose dimensions are tried


class Mending:
    """Mends operators, and remembers what it has tried for each kind."""

    def __init__(self, graph: Graph, constraints: Constraints, builder: Builder) -> None:
        self._graph, self._constraints, self._builder = graph, constraints, builder
        self._blame: Blame | None = None
        self._steps: dict[Hashable, Iterator[tuple[int, list[Axis], int]]] = {}  # still to try, by kind of operator
        self._trials = 0

    def hold_steps(self, problem: Problem, breadth: int) -> bool:
        """Try the next step for the dimensions that a failing operator depends on; False when all have been tried."""
        if not problem.fails:
            return False
        blame, place = self._blaming(), self._place(problem)
        kind = blame.kind(place, 0)
        if kind in self._steps:
            self._builder.release_steps(kind)
        else:
            self._steps[kind] = self._to_try(blame, place, breadth)
        for first, axes, step in self._steps[kind]:
            if self._trials == _STEP_TRIALS:
                break
            _, text, location = self._reason(problem, first)
            if self._builder.hold_steps(kind, axes, step, text, location):
                self._trials += 1
                return True
        return False

    def pin(self, problem: Problem, breadth: int, pairs: bool) -> bool:
        """Pin the axes that deviate, or else the axes of the nearest earlier operator that has any free ones. Return
        whether anything was pinned. ``pairs``: the problem occurs only where one of two units is left."""
        blame, place = self._blaming(), self._place(problem)
        axes = self._deviating(problem, place)
        if axes and self._builder.frees(axes, pairs):
            blamed = place
        else:
            problem = Problem(place, problem.text)
            touched = self._constraints.touched
            found = (other for other in blame.before(place) if self._builder.frees(touched[other].axes, pairs))
            blamed = next(found, -1)
        if blamed < 0:
            return False
        alike = blame.counterparts(place, blamed, breadth)
        return self._builder.pin_axes([self._reason(problem, other) for other in alike], pairs)

    def _blaming(self) -> Blame:
        """Built only when something fails."""
        if self._blame is None:
            self._blame = Blame(self._graph, self._constraints)
        return self._blame

    def _place(self, problem: Problem) -> int:
        return min(problem.place, len(self._constraints.touched) - 1)

    def _deviating(self, problem: Problem, place: int) -> list[Axis]:
        """The axes whose size is not the expected one."""
        node, found = self._constraints.touched[place].node, []
        for output, dim in problem.deviating:
            number = node.outputs[output]
            label = None if number is None else self._constraints.labels[number]
            found += [] if label is None else [label.axes[dim]]
        return found

    def _reason(self, problem: Problem, place: int) -> tuple[list[Axis], str, Location]:
        touched = self._constraints.touched[place]
        axes = self._deviating(problem, place) or touched.axes
        return axes, f"after a cut, {touched.node.operator} {problem.text}", touched.node.location

    def _to_try(self, blame: Blame, place: int, breadth: int) -> Iterator[tuple[int, list[Axis], int]]:
        """Yield operators, the axes of one dimension of each and of its counterparts in other layers, and a step to
        try. The nearest dimensions that bring new groups come first, results before arguments."""
        touched = self._constraints.touched
        levels: list[tuple[int, list[Axis]]] = []
        seen: set[int] = set()
        for source in itertools.islice(blame.sources(place), _NEAR):
            for position in range(len(touched[source].axes) - 1, -1, -1):
                groups = self._builder.groups_on([touched[source].axes[position]])
                if groups - seen and len(levels) < _LEVELS:
                    alike = [touched[other].axes for other in blame.counterparts(place, source, breadth)]
                    levels.append((source, [axes[position] for axes in alike if position < len(axes)]))
                seen |= groups
            if len(levels) == _LEVELS:
                break
        for step in _STEPS:
            yield from ((source, axes, step) for source, axes in levels)
