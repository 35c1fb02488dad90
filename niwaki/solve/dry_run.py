"""Try a search space before the user gets it: cut by a random plan, run, compare every shape with the expected one.

Whatever niwaki misunderstood about sizes shows up here as an operator that fails, is missing, or gives another shape.
What fails is mended in all similar layers at once, and the dry run starts again. How often depends on the number of
kinds of layers, and not on the number of layers.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from niwaki.core.location import Location
from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray
from niwaki.errors import PlanError
from niwaki.rules.constraints import Constraints
from niwaki.solve.blame import BREADTHS
from niwaki.solve.build import Builder
from niwaki.solve.compare import Comparison, Problem, named
from niwaki.solve.masks import hard_keep, slight_keep
from niwaki.solve.mend import Mending
from niwaki.surgery.cut import cut_empty, duplicate
from niwaki.trace.extent import NOTHING
from niwaki.trace.fake import failures_not_logged
from niwaki.trace.graph import Graph, Run
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import trace

_SHARE = 0.25  # a hard cut is quick to run, and differs for groups of different sizes
_LEAST = 2  # torch treats dimensions of one position differently: einsum multiplies instead of contracting
_ATTEMPTS = 40
_PATIENCE = 10  # attempts after which more operators count as alike
_DRAWS = 8  # random plans, until the numbers in Python can follow one


def dry_run(
    graph: Graph, constraints: Constraints, builder: Builder, calls: Sequence[ExampleCall], copied: bool = False
) -> list[str]:
    """Pin in ``builder`` what does not survive a random plan. Return notes about what could not be mended. ``copied``:
    a copy is tried even if no unit can be cut from it."""
    rng, mending = np.random.default_rng(0), Mending(graph, constraints, builder)
    pairs, only_pairs = True, False  # whether groups of two keep one unit; whether nothing else is cut
    again = False  # whether successful steps are tried one by one: 18 - 3 * 4 is a multiple of 3, 18 - 4 is not
    compared = False  # whether a copy of the model was compared with the model
    failure = f"it still fails after {_ATTEMPTS} attempts"
    for attempt in range(_ATTEMPTS):
        drawn = _drawn(builder, rng, pairs, not only_pairs, again) if len(builder.units) else None
        if drawn is None:
            return [] if attempt or not copied else _pinned_for_copying(graph, constraints, builder, calls)
        plan, keep = drawn
        model = builder.space().model
        problem = _rehearse(cut_empty(model, plan), graph, constraints, builder, calls, keep, tolerant=only_pairs)
        if problem is None and pairs and (again or not builder.units.steps):
            builder.pin_whole()
            return []
        if problem is None:
            pairs, only_pairs, again = True, not pairs, pairs
            continue
        breadth = min(attempt // _PATIENCE, BREADTHS - 1)
        if pairs and not (only_pairs or again) and (np.diff(builder.units.starts) == _LEAST).any():
            pairs = False  # is the single remaining unit the problem, or something else?
            continue
        again = False
        if not only_pairs and mending.hold_steps(problem, breadth):
            continue
        notes = [] if compared else _pinned_for_copying(graph, constraints, builder, calls)
        if notes:
            return notes
        compared = True
        if not mending.pin(problem, breadth, only_pairs) and not (only_pairs and mending.pin(problem, breadth, False)):
            failure = problem.told(constraints)
            break
    builder.pin_everything(f"a rehearsed cut fails where niwaki cannot tell what to pin: {failure}")
    return [f"A rehearsed cut failed, and niwaki could not tell what to pin, so everything is pinned: {failure}"]


def _drawn(
    builder: Builder, rng: np.random.Generator, pairs: bool, others: bool, slight: bool
) -> tuple[Plan, BoolArray] | None:
    """Draw a random plan and its mask; None if no unit can be removed. A few draws may not fit the sizes in Python;
    what never fits is pinned. ``slight``: remove little of everything, if such a plan fits."""
    while len(builder.units):
        space = builder.space()
        for draw in range(_DRAWS):
            if slight and not draw:
                keep = slight_keep(builder.units, rng)
            else:
                keep = hard_keep(builder.units, rng, _LEAST, _SHARE, ones=pairs, others=others)
            try:
                return space.plan(keep), keep
            except PlanError as cause:
                failure = cause
        if not builder.pin_failing(keep):
            builder.pin_everything(f"no rehearsed plan can be built: {failure}")
    return None


def _pinned_for_copying(
    graph: Graph, constraints: Constraints, builder: Builder, calls: Sequence[ExampleCall]
) -> list[str]:
    """Pin everything if a copy of the model is another network. Return the note about that."""
    fault = _fault_of_copying(builder.space().model, graph, constraints, builder, calls)
    if fault is None:
        return []
    builder.copy_fault = f"a copy of the model is another network: {fault.told(constraints)}"
    builder.pin_everything(builder.copy_fault)
    return [
        "A copy of the model computes something else than the model, and niwaki cuts a copy, so everything is pinned: "
        f"{fault.told(constraints)}. An identity (`is`, `id`), a global name or a registry may tell the two apart."
    ]


def _fault_of_copying(
    model: torch.nn.Module, graph: Graph, constraints: Constraints, builder: Builder, calls: Sequence[ExampleCall]
) -> Problem | None:
    """Find what is wrong with an uncut copy of the model that is not wrong with the model itself when it runs again.
    The copy shares the memory of the model's parameters."""
    lent: dict[int, object] = {
        id(parameter): torch.nn.Parameter(parameter.detach(), parameter.requires_grad)
        for parameter in model.parameters()
    }
    lent |= {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    everything = np.ones(len(builder.units), dtype=bool)
    problem = _rehearse(duplicate(model, lent), graph, constraints, builder, calls, everything)
    if problem is None or _rehearse(model, graph, constraints, builder, calls, everything) is not None:
        return None
    return problem


def _rehearse(
    small: torch.nn.Module,
    graph: Graph,
    constraints: Constraints,
    builder: Builder,
    calls: Sequence[ExampleCall],
    keep: BoolArray,
    tolerant: bool = False,
) -> Problem | None:
    """Run the cut model as the dense model was run, and find the first problem. Train mode is run only where it goes
    through other lines. ``tolerant``: torch may run other operators inside the same calls."""
    comparison = Comparison(graph, constraints, builder.units, small, keep)
    start = 0
    seen: set[Location] = set()  # lines that a run of the cut model has been through
    for run, call in zip(graph.runs, itertools.cycle(calls), strict=False):
        lines = {node.location for node in run.nodes if torch.Tag.nondeterministic_seeded not in node.operator.tags}
        if run.error is None and not lines <= seen:
            seen |= lines
            with failures_not_logged():
                tried = _tried(small, call, run)
            problem = comparison.problem(run, tried, start)
            if problem is not None and not (tolerant and problem.detour and comparison.detours_only(run, tried)):
                return problem
        start += len(run.nodes)
    return None


def _tried(small: torch.nn.Module, call: ExampleCall, run: Run) -> Graph:
    """Run the cut model as ``run`` was. Run it again if it took another path: what a network computes in its first run
    and caches (a table of positions) is a constant in its second, and may have been one in ``run``."""
    for _ in range(2):
        tried = trace(
            small, [call], (run.training,), required=True, failing=True, decided=run.decisions, extent=NOTHING
        )
        paths = [[name for _, name in named(one, all_of_them=False)] for one in (run, tried.runs[0])]
        if paths[0] == paths[1]:
            break
    return tried
