"""Plans in which every branch of a residual stream keeps channels of its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from niwaki.core.counts import BoolArray
from niwaki.core.dying import structure_units
from niwaki.core.edits import Edit, Gather, Keep, Scatter, SetAttribute
from niwaki.core.edits.numbers import derived_attributes
from niwaki.core.plan import Plan
from niwaki.core.positions import Positions
from niwaki.core.scalars import is_number
from niwaki.core.scattered import runs_of
from niwaki.core.space import SearchSpace
from niwaki.criteria.mix import finite
from niwaki.criteria.score import Scores
from niwaki.errors import BudgetError, PlanError
from niwaki.selection.budget import Budget, check_budget
from niwaki.selection.levels import leaving
from niwaki.selection.steps import Widths
from niwaki.unions.readers import Reader
from niwaki.unions.writers import Writers


def union_plan(
    writers: Writers, keep: BoolArray, writes: Sequence[BoolArray], provenance: Mapping[str, Any] | None = None
) -> Plan:
    """The plan that keeps the units ``keep`` [num_units], and of each writer's channels those that are written.

    ``writes``: for each writer, which of its channels it writes, [channels], and then for each reader, which it reads;
    those of units that do not stay are dropped. A channel that writers alone make leaves the stream if no writer keeps
    it. Equal to the dense network whose weights of every writer are zero for the channels that it does not write, and
    those of every reader for the channels that it does not read.

    Of a branch that is erased, nothing writes or reads, whatever ``writes`` says.

    Raises:
        PlanError: a writer would write nothing, or a reader read nothing; or the sizes in the model's code cannot
            follow.
    """
    space = writers.space
    if len(writes) != len(writers.ends) or any(
        np.shape(mask) != np.shape(end.units) for mask, end in zip(writes, writers.ends, strict=False)
    ):
        several = f"{len(writers.writers)} writers" + f" and {len(writers.readers)} readers" * bool(writers.readers)
        raise PlanError(f"writes must be a mask of its channels for each of the {several}, in their order.")
    keep = np.array(keep, dtype=bool)
    living = _living(writers, keep)
    keep &= carried(writers, keep, writes)
    plan = space.plan(keep, provenance)
    kept = space.keep_of(plan)
    edits = {edit.place: edit for edit in plan.edits}
    placed: list[_Later] = []
    lengths: dict[tuple[str, int], int] = {}
    for mask, end, lives in zip(writes, writers.ends, living, strict=True):
        if not lives:
            continue
        stream = kept[end.units]
        own = np.asarray(mask, bool) & stream
        does = "read" if isinstance(end, Reader) else "write"
        if not own.any() and stream.any():
            raise PlanError(
                f"The branch {end.name!r} would {does} no channel that stays. Let it {does} one, or erase it."
            )
        if bool((own == stream).all()):
            continue
        positions = Positions(np.flatnonzero(own))
        for place in end.dims:
            edits["keep", place.tensor, place.dim] = Keep(place.tensor, place.dim, positions)
            lengths[place.tensor, place.dim] = len(positions)
        layers = end.layers if isinstance(end, Reader) else ((end.module, end.dim),)
        kind = Gather if isinstance(end, Reader) else Scatter
        placed += [_Later(kind, module, dim, own[stream]) for module, dim in layers]
    for edit in derived_attributes(space.model, {**plan.lengths, **lengths}, _read(plan, space.model)):
        edits[edit.place] = edit
    return replace(plan, edits=(*edits.values(), *(one.edit(plan, edits) for one in placed)))


def carried(writers: Writers, keep: BoolArray, writes: Sequence[BoolArray]) -> BoolArray:
    """The units [num_units] that stay if streams carry all that is written: what a branch that stays writes, and the
    units of ``keep`` that others than writers make. ``writes`` as for `union_plan`."""
    written = np.zeros(writers.space.num_units, dtype=bool)
    number = len(writers.writers)
    for mask, writer, lives in zip(writes[:number], writers.writers, _living(writers, keep)[:number], strict=True):
        written[writer.units[np.asarray(mask, bool)]] |= lives
    found: BoolArray = np.where(writers.alone(), False, keep) | written
    return found


def _living(writers: Writers, keep: BoolArray) -> list[bool]:
    """For each of the ends, whether its branch, and all around it, stay in a plan of the units ``keep`` [num_units]."""
    space = writers.space
    whole = structure_units(space)
    gone = [n for n, unit in whole.items() if not keep[unit]]
    own = {one.name: number for number, one in enumerate(space.structures)}
    assert space.erasures is not None
    lost = space.erasures.gone(gone) if gone else frozenset()
    return [own[end.name] not in gone and not any(place.tensor in lost for place in end.dims) for end in writers.ends]


def _read(plan: Plan, model: nn.Module) -> list[SetAttribute]:
    """The numbers that ``plan`` changes because code reads them, and not because their tensors are cut."""
    derived = {edit.place for edit in derived_attributes(model, plan.lengths, ())}
    return [edit for edit in plan.edits_of(SetAttribute) if edit.place not in derived]


@dataclass(frozen=True, slots=True, eq=False)
class _Later:
    """An edit of the layer ``module``, to be made when all shapes are known; ``own``: of the channels of the stream
    that stay, those that the layer has, along ``dim``."""

    kind: type[Scatter | Gather]
    module: str
    dim: int
    own: BoolArray

    def edit(self, plan: Plan, edits: Mapping[Any, Edit]) -> Edit:
        """The edit, beside the others of the plan."""
        tensors = []
        for name, shape in plan.dense.items():
            if name.rpartition(".")[0] == self.module:
                cut = [
                    len(edit.kept) if isinstance(edit := edits.get(("keep", name, place)), Keep) else size
                    for place, size in enumerate(shape)
                ]
                tensors.append((name.rpartition(".")[2], tuple(cut)))
        return self.kind(self.module, *runs_of(self.own.tolist()), self.dim, tuple(tensors))


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
    chosen = hap_masks(writers, scores, removed, least=least)
    about = {"criterion": scores.criterion, "removed": removed, "least": least, "streams": "union"}
    plan = union_plan(writers, *chosen)
    return replace(plan, provenance={**about, **costs_told(writers.space, plan)})


def hap_masks(writers: Writers, scores: Scores, removed: float, *, least: float) -> tuple[BoolArray, list[BoolArray]]:
    """What `hap` chooses, for `union_plan`: the units [num_units] that stay, and what each of the ends keeps."""
    space = writers.space
    for name, value in (("removed", removed), ("least", least)):
        if not is_number(value) or not 0 <= value <= 1:
            raise BudgetError(f"{name}={value!r} must be a fraction from 0 to 1.")
    expected = space.num_units + sum(len(end.units) for end in writers.ends)
    if not isinstance(scores, Scores) or np.shape(scores.values) != (expected,):
        raise BudgetError(
            f"scores must be of writers.scored_space, for {expected} units: niwaki.score(writers.scored_space, ...), "
            "or niwaki.score(space, ...) with the space made with streams='union'."
        )
    values, of_ends = writers.split(finite(writers.scored_space, scores.values, scores.criterion))
    alone, width = writers.alone(), sum(group.units for group in space.width_groups)
    ranked = np.concatenate([values[:width][~alone[:width]], *of_ends])
    bar = np.sort(ranked)[min(math.floor(removed * len(ranked)), len(ranked) - 1)] if len(ranked) else 0.0

    def stays(own: np.ndarray) -> BoolArray:
        found = np.asarray(own >= bar)
        found[np.argsort(-own, kind="stable")[: max(1, math.ceil(least * len(own)))]] = True
        return found

    writes = [stays(own) for own in of_ends]
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.width_groups:
        keep[group.numbers] = stays(values[group.numbers])
    keep = ~leaving(space, ~carried(writers, keep, writes), Widths())
    for number, end in enumerate(writers.ends):
        if isinstance(end, Reader) and not (writes[number] & keep[end.units]).any():
            best = np.where(keep[end.units], of_ends[number], -np.inf).argmax()  # of those that the stream has
            writes[number] = np.arange(len(end.units)) == best
    return keep, writes


def costs_told(space: SearchSpace, plan: Plan) -> dict[str, dict[str, int]]:
    """What the network costs, and what it does as ``plan`` leaves it, for provenances."""
    return {
        name: {"params": cost.params, "macs": cost.macs, "memory": cost.memory}
        for name, cost in (("dense", space.cost()), ("kept", space.cost(plan)))
    }


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
    check_union_budget(budget, MEASURES)
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


def check_union_budget(budget: object, measures: Sequence[str]) -> None:
    """Raise `BudgetError` if ``budget`` is not one, or limits something else than ``measures``."""
    check_budget(budget, training=False)
    assert isinstance(budget, Budget)
    others = sorted(set(budget.limits) - set(measures))
    if others == ["latency"]:
        raise BudgetError(
            "The latency of union streams is measured on networks that are cut, with the operators that put channels "
            "into their places: niwaki.choose(space, scores, budget, example_inputs=x), of the space made with "
            "streams='union'."
        )
    if others or budget.steps != Widths():
        raise BudgetError(
            f"For union streams a budget limits {', '.join(MEASURES)}, and widths are not rounded: {budget} asks for "
            f"{others[0] if others else 'other widths'}."
        )
