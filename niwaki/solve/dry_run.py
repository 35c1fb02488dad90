"""Try a search space before it is handed out: cut by a random plan, run, compare every shape with the expected one.

Whatever niwaki misunderstood about sizes shows here as an operator that fails, is missing, or gives another shape. What
fails is mended, in all layers that are alike at once, and the rehearsal starts again: how many it takes depends on how
many kinds of layers there are, and not on how many layers.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch

from niwaki.core.location import Location
from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray
from niwaki.errors import PlanError
from niwaki.solve.blame import BREADTHS
from niwaki.solve.build import Builder
from niwaki.solve.compare import Comparison, Problem, named
from niwaki.solve.constraints import Constraints
from niwaki.solve.masks import hard_keep, slight_keep
from niwaki.solve.mend import Mending
from niwaki.surgery.cut import cut_empty, duplicate
from niwaki.trace.extent import NOTHING
from niwaki.trace.graph import Graph, Run
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import trace

_SHARE = 0.25  # a hard cut: quick to run, different for groups of different size, and all of the smallest
_LEAST = 2  # of a dimension with one position torch makes another use: einsum multiplies instead of contracting
_ATTEMPTS = 40
_PATIENCE = 10  # attempts after which more operators count as alike
_DRAWS = 8  # of plans that the numbers in Python can follow


def dry_run(graph: Graph, constraints: Constraints, builder: Builder, calls: Sequence[ExampleCall]) -> list[str]:
    """Pin in ``builder`` what does not survive a random plan; returns notes about what could not be mended."""
    rng, mending = np.random.default_rng(0), Mending(graph, constraints, builder)
    pairs, only_pairs = True, False  # whether groups of two are left with one, and nothing else is cut
    again = False  # whether steps that went well are tried one by one: 18 - 3 * 4 is a multiple of 3, 18 - 4 is not
    compared = False  # a copy of the model with the model
    failure = f"it still fails after {_ATTEMPTS} attempts"
    for attempt in range(_ATTEMPTS):
        drawn = _drawn(builder, rng, pairs, not only_pairs, again) if len(builder.units) else None
        if drawn is None:
            return []
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
            pairs = False  # is it the cut to a single one, or something else?
            continue
        again = False
        if not only_pairs and mending.hold_steps(problem, breadth):
            continue
        fault = None if compared else _fault_of_copying(model, graph, constraints, builder, calls)
        if fault is not None:
            told = fault.told(constraints)
            builder.pin_everything(f"a copy of the model is another network: {told}")
            return [
                "A copy of the model computes something else than the model, and niwaki cuts a copy, so everything is "
                f"pinned: {told}. An identity (`is`, `id`), a global name or a registry may tell the two apart."
            ]
        compared = True
        if not mending.pin(problem, breadth, only_pairs) and not (only_pairs and mending.pin(problem, breadth, False)):
            failure = problem.told(constraints)
            break
    builder.pin_everything(f"a rehearsed cut fails where niwaki cannot tell what to pin: {failure}")
    return [f"A rehearsed cut failed, and niwaki could not tell what to pin, so everything is pinned: {failure}"]


def _drawn(
    builder: Builder, rng: np.random.Generator, pairs: bool, others: bool, slight: bool
) -> tuple[Plan, BoolArray] | None:
    """A random plan and its mask; None where nothing is left that could leave. A few numbers of units may not fit the
    sizes in Python, by chance; what never fits is pinned. ``slight``: a plan that takes little of everything, if one
    fits."""
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


def _fault_of_copying(
    model: torch.nn.Module, graph: Graph, constraints: Constraints, builder: Builder, calls: Sequence[ExampleCall]
) -> Problem | None:
    """What is wrong already with a copy that nothing was cut from, if it is not so with the model itself when that runs
    again. The copy has the memory of the model's parameters, and takes none of its own."""
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
    """Run the cut model as the model was run; a run in train mode only if it goes through lines of its own.
    ``tolerant``: inside the same calls torch may run other operators."""
    comparison = Comparison(graph, constraints, builder.units, small, keep)
    start = 0
    seen: set[Location] = set()  # lines that a rehearsed run has been through
    for run, call in zip(graph.runs, itertools.cycle(calls), strict=False):
        lines = {node.location for node in run.nodes if torch.Tag.nondeterministic_seeded not in node.operator.tags}
        if run.error is None and not lines <= seen:
            seen |= lines
            with _without_log():
                tried = _tried(small, call, run)
            problem = comparison.problem(run, tried, start)
            if problem is not None and not (tolerant and problem.detour and comparison.detours_only(run, tried)):
                return problem
        start += len(run.nodes)
    return None


def _tried(small: torch.nn.Module, call: ExampleCall, run: Run) -> Graph:
    """The cut model run as ``run`` was. What a network computes in its first run and keeps in a cache (a table of
    positions) is a constant in its second, and may have been one in ``run``: on another path, another try."""
    for _ in range(2):
        tried = trace(
            small, [call], (run.training,), required=True, failing=True, decided=run.decisions, extent=NOTHING
        )
        paths = [[name for _, name in named(one, all_of_them=False)] for one in (run, tried.runs[0])]
        if paths[0] == paths[1]:
            break
    return tried


@contextmanager
def _without_log() -> Iterator[None]:
    """A run on fake tensors that fails, as some must, is no news to the user: torch logs every one as an error."""
    log = logging.getLogger("torch._subclasses.fake_tensor")

    def nothing(_: logging.LogRecord) -> bool:
        return False

    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)
