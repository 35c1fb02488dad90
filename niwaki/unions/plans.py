"""Plans in which every branch of a residual stream keeps channels of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import nn

from niwaki.core.counts import BoolArray
from niwaki.core.dying import structure_units
from niwaki.core.edits import Edit, Keep, Scatter, SetAttribute
from niwaki.core.edits.numbers import derived_attributes
from niwaki.core.plan import Plan
from niwaki.core.positions import Positions
from niwaki.core.scalars import is_number
from niwaki.core.scattered import runs_of
from niwaki.criteria.mix import finite
from niwaki.criteria.score import Scores
from niwaki.errors import BudgetError, PlanError
from niwaki.selection.budget import Budget, check_budget
from niwaki.selection.levels import leaving
from niwaki.selection.steps import Widths
from niwaki.unions.writers import Writers


def union_plan(
    writers: Writers, keep: BoolArray, writes: Sequence[BoolArray], provenance: Mapping[str, Any] | None = None
) -> Plan:
    """The plan that keeps the units ``keep`` [num_units], and of each writer's channels those that are written.

    ``writes``: for each writer, which of its channels it writes, [channels]; those of units that do not stay are
    dropped. A channel that writers alone make leaves the stream if no writer keeps it. Equal to the dense network whose
    weights of every writer are zero for the channels that it does not write.

    A writer whose structure is erased writes nothing, whatever ``writes`` says.

    Raises:
        PlanError: a writer would write nothing; or the sizes in the model's code cannot follow.
    """
    space = writers.space
    if len(writes) != len(writers.writers) or any(
        np.shape(mask) != np.shape(writer.units) for mask, writer in zip(writes, writers.writers, strict=False)
    ):
        raise PlanError(
            f"writes must be a mask of its channels for each of the {len(writers.writers)} writers, in their order."
        )
    keep = np.array(keep, dtype=bool)
    living = _living(writers, keep)
    someone = ~writers.alone()
    for mask, writer, lives in zip(writes, writers.writers, living, strict=True):
        someone[writer.units[np.asarray(mask, bool) & lives]] = True
    keep &= someone
    plan = space.plan(keep, provenance)
    kept = space.keep_of(plan)
    edits = {edit.place: edit for edit in plan.edits}
    scatters: list[Edit] = []
    lengths: dict[tuple[str, int], int] = {}
    for mask, writer, lives in zip(writes, writers.writers, living, strict=True):
        if not lives:
            continue
        stream = kept[writer.units]
        written = np.asarray(mask, bool) & stream
        if not written.any() and stream.any():
            raise PlanError(
                f"The branch {writer.name!r} would write no channel that stays. Let it write one, or erase it."
            )
        if bool((written == stream).all()):
            continue
        rows = Positions(np.flatnonzero(written))
        for place in writer.dims:
            edits["keep", place.tensor, place.dim] = Keep(place.tensor, place.dim, rows)
            lengths[place.tensor, place.dim] = len(rows)
        scatters.append(_scatter(plan, writer.module, writer.dim, edits, written[stream]))
    for edit in derived_attributes(space.model, {**plan.lengths, **lengths}, _read(plan, space.model)):
        edits[edit.place] = edit
    return replace(plan, edits=(*edits.values(), *scatters))


def carried(writers: Writers, keep: BoolArray, writes: Sequence[BoolArray]) -> BoolArray:
    """The units [num_units] that stay if streams carry all that is written: what a branch that stays writes, and the
    units of ``keep`` that others than writers make."""
    written = np.zeros(writers.space.num_units, dtype=bool)
    for mask, writer, lives in zip(writes, writers.writers, _living(writers, keep), strict=True):
        written[writer.units[mask]] |= lives
    found: BoolArray = np.where(writers.alone(), False, keep) | written
    return found


def _living(writers: Writers, keep: BoolArray) -> list[bool]:
    """For each writer, whether its structure, and all around it, stay in a plan of the units ``keep`` [num_units]."""
    space = writers.space
    whole = structure_units(space)
    gone = [n for n, unit in whole.items() if not keep[unit]]
    own = {one.name: number for number, one in enumerate(space.structures)}
    assert space.erasures is not None
    lost = space.erasures.gone(gone) if gone else frozenset()
    return [
        own[writer.name] not in gone and not any(place.tensor in lost for place in writer.dims)
        for writer in writers.writers
    ]


def _read(plan: Plan, model: nn.Module) -> list[SetAttribute]:
    """The numbers that ``plan`` changes because code reads them, and not because their tensors are cut."""
    derived = {edit.place for edit in derived_attributes(model, plan.lengths, ())}
    return [edit for edit in plan.edits_of(SetAttribute) if edit.place not in derived]


def _scatter(plan: Plan, module: str, dim: int, edits: Mapping[Any, Edit], written: BoolArray) -> Scatter:
    """The edit of one layer; ``written``: of the channels of the stream that stay, those that it writes."""
    tensors = []
    for name, shape in plan.dense.items():
        if name.rpartition(".")[0] == module:
            cut = [
                len(edit.kept) if isinstance(edit := edits.get(("keep", name, place)), Keep) else size
                for place, size in enumerate(shape)
            ]
            tensors.append((name.rpartition(".")[2], tuple(cut)))
    return Scatter(module, *runs_of(written.tolist()), dim, tuple(tensors))


def hap(writers: Writers, scores: Scores, removed: float = 0.5, *, least: float = 0.05) -> Plan:
    """The plan of Hessian-Aware Pruning (arXiv 2101.08940) with a channel set for every branch.

    ``scores`` of ``writers.scored_space``, by ``relative_hessian_trace`` for example. The fraction ``removed`` with the
    lowest scores leaves, of all units and all channels of writers together; each group and each writer keeps its best
    ones, at least the fraction ``least`` and one of them.

    Raises:
        BudgetError: a fraction is out of range, or the scores are for another space.
        PlanError: the sizes in the model's code cannot follow.

    Example:
        >>> import torch, niwaki
        >>> from niwaki.networks.small import ResNet
        >>> net, x = ResNet(10, 1, (8, 8), (8,), 2), torch.randn(1, 1, 8, 8)
        >>> writers = Writers.of(niwaki.search_space(net, x, erase=True))
        >>> plan = hap(writers, niwaki.score(writers.scored_space, "magnitude"), 0.5)
        >>> niwaki.check(net, plan, x).holds
        True
    """
    space = writers.space
    for name, value in (("removed", removed), ("least", least)):
        if not is_number(value) or not 0 <= value <= 1:
            raise BudgetError(f"{name}={value!r} must be a fraction from 0 to 1.")
    expected = space.num_units + sum(len(writer.units) for writer in writers.writers)
    if not isinstance(scores, Scores) or np.shape(scores.values) != (expected,):
        raise BudgetError(
            f"scores must be of writers.scored_space, for {expected} units: niwaki.score(writers.scored_space, ...), "
            "or niwaki.score(space, ...) with the space made with streams='union'."
        )
    values, of_writers = writers.split(finite(writers.scored_space, scores.values, scores.criterion))
    alone, width = writers.alone(), sum(group.units for group in space.width_groups)
    ranked = np.concatenate([values[:width][~alone[:width]], *of_writers])
    bar = np.sort(ranked)[min(math.floor(removed * len(ranked)), len(ranked) - 1)] if len(ranked) else 0.0

    def stays(own: np.ndarray) -> BoolArray:
        found = np.asarray(own >= bar)
        found[np.argsort(-own, kind="stable")[: max(1, math.ceil(least * len(own)))]] = True
        return found

    writes = [stays(own) for own in of_writers]
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.width_groups:
        keep[group.numbers] = stays(values[group.numbers])
    keep = ~leaving(space, ~carried(writers, keep, writes), Widths())
    about = {"criterion": scores.criterion, "removed": removed, "least": least, "streams": "union"}
    plan = union_plan(writers, keep, writes, about)
    costs = {
        name: {"params": cost.params, "macs": cost.macs, "memory": cost.memory}
        for name, cost in (("dense", space.cost()), ("kept", space.cost(plan)))
    }
    return replace(plan, provenance={**about, **costs})


MEASURES = ("macs", "params", "memory")
_HALVINGS = 12


def choose(writers: Writers, scores: Scores, budget: Budget, *, least: float = 0.05) -> Plan:
    """The plan of `hap` that removes the smallest fraction with which every limit of ``budget`` is met.

    Raises:
        BudgetError: the budget cannot be met so, or limits something else than ``macs``, ``params`` and ``memory``.

    Example:
        >>> import torch, niwaki
        >>> from niwaki.networks.small import ResNet
        >>> net, x = ResNet(10, 1, (8, 8), (8,), 2), torch.randn(1, 1, 8, 8)
        >>> space = niwaki.search_space(net, x, erase=True)
        >>> writers = Writers.of(space)
        >>> plan = choose(writers, niwaki.score(writers.scored_space, "magnitude"), niwaki.Budget(macs=0.5))
        >>> space.cost(plan).macs <= 0.5 * space.cost().macs
        True
    """
    check_budget(budget, training=False)
    others = sorted(set(budget.limits) - set(MEASURES))
    if others or budget.steps != Widths():
        raise BudgetError(
            f"For union streams a budget limits {', '.join(MEASURES)}, and widths are not rounded: {budget} asks for "
            f"{others[0] if others else 'other widths'}."
        )
    space, limits = writers.space, budget.absolute(writers.space, MEASURES)

    def meets(plan: Plan) -> bool:
        cost = space.cost(plan)
        return all(getattr(cost, measure) <= limit for measure, limit in limits.items())

    low, high, found = 0.0, 1.0, hap(writers, scores, 1.0, least=least)
    if not meets(found):
        raise BudgetError(
            f"The budget ({budget}) cannot be met: with the fraction {least} of every group and branch the network has "
            f"{space.cost(found)}. Raise the budget, or lower `least`."
        )
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        trial = hap(writers, scores, middle, least=least)
        if meets(trial):
            high, found = middle, trial
        else:
            low = middle
    return replace(found, provenance={**found.provenance, "budget": dict(budget.limits)})
