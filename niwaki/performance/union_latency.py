"""Union streams within a measured latency: what operators cost that put channels into their places counts.

MACs do not know these operators: a branch that leaves out a few channels saves less than it costs to gather or scatter
the others. So networks are cut and run, and a branch for which it does not pay has all channels of its stream.
"""

from __future__ import annotations

import logging
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from niwaki.core.counts import BoolArray
from niwaki.core.edits import PlacedEdit
from niwaki.core.plan import Plan
from niwaki.criteria.score import Scores
from niwaki.errors import BudgetError
from niwaki.performance.inputs_of import inputs_of
from niwaki.performance.measure import device_of, evaluating, interleaved, quiet_clock
from niwaki.performance.meters import Limit, meters
from niwaki.selection.budget import Budget
from niwaki.surgery.cut import cut
from niwaki.trace.model_state import preserved
from niwaki.unions.plans import MEASURES, check_union_budget, choose, costs_told, hap_masks, union_plan
from niwaki.unions.readers import Reader
from niwaki.unions.space import UnionSpace
from niwaki.unions.writers import Writer

_HALVINGS = 8
_LEAST = 0.05  # of every group and branch
_SECONDS, _ROUNDS = 0.05, 9  # of measuring one branch

_LOG = logging.getLogger("niwaki")


@dataclass(frozen=True, slots=True)
class EndTime:
    """The microseconds of the layers of one end of a branch, in one pass: with the channels of its own that it has,
    index operators included (``own``), and with all channels of the stream (``whole``)."""

    name: str
    own: float
    whole: float

    @property
    def pays(self) -> bool:
        """Whether channels of its own save time."""
        return self.own < self.whole


@dataclass(frozen=True, slots=True, eq=False)
class _UnionTrial:
    plan: Plan
    used: float
    told: Mapping[str, float]
    whole: tuple[str, ...]


def fit_union_latency(space: UnionSpace, scores: Scores, budget: Budget, example_inputs: Any) -> Plan:
    """The plan of `niwaki.unions.hap` that removes the smallest fraction with which every limit is met, the ``latency``
    measured on cut networks. Where channels of its own do not save time, a branch has all channels of its stream, as
    far as other limits allow.

    Raises:
        BudgetError: the budget cannot be met so, or the network cannot be measured.
    """
    check_union_budget(budget, (*MEASURES, "latency"))
    plain = space.writers.space
    meter = meters(plain, {"latency": budget.measured["latency"]}, example_inputs)["latency"]
    modelled = {measure: limit for measure, limit in budget.limits.items() if measure in MEASURES}
    least = 0.0
    if modelled:
        least = choose(space.writers, scores, Budget(**modelled)).provenance["removed"]  # type: ignore[arg-type]
    with preserved(plain.model):
        trial = partial(_tried, space, scores, meter, budget.absolute(plain, MEASURES), example_inputs)
        found = trial(least)
        if found.used > 1:
            low, high, found = least, 1.0, trial(1.0)
            if found.used > 1:
                raise _unreachable(budget, meter, found)
            for _ in range(_HALVINGS):
                if found.used >= 1 - meter.gap:
                    break
                middle = (low + high) / 2
                one = trial(middle)
                if one.used <= 1:
                    high, found = middle, one
                else:
                    low = middle
    about = {"budget": dict(budget.limits), "measured": {"latency": dict(found.told)}, "whole": list(found.whole)}
    return replace(found.plan, provenance={**found.plan.provenance, **about})


def end_times(space: UnionSpace, keep: BoolArray, masks: Sequence[BoolArray], example_inputs: Any) -> list[EndTime]:
    """The times of all ends that have channels of their own in the plan of these masks (`niwaki.unions.union_plan`)."""
    writers = space.writers
    plan = union_plan(writers, keep, masks)
    kept = writers.space.keep_of(plan)
    own = cut(space.model, plan)
    whole = cut(space.model, union_plan(writers, kept, [np.ones(len(end.units), bool) for end in writers.ends]))
    placed = {edit.module for edit in plan.edits if isinstance(edit, PlacedEdit)}
    timed = [
        (name, _layers(end))
        for end, name in zip(writers.ends, writers.names, strict=True)
        if not placed.isdisjoint(_layers(end))
    ]
    paths = {path for _, layers in timed for path in layers}
    networks = {
        which: (network, inputs_of(network, paths, example_inputs))
        for which, network in (("own", own), ("whole", whole))
    }
    device = device_of([own])
    found = []
    with evaluating([own, whole]):
        for name, layers in timed:
            if not all(path in given for _, given in networks.values() for path in layers):
                continue  # it does not run
            runs = {
                which: partial(_run, [(network.get_submodule(path), given[path]) for path in layers])
                for which, (network, given) in networks.items()
            }
            times = interleaved(runs, device, _SECONDS, _ROUNDS, quiet_clock(device))
            ratio = statistics.median(a / b for a, b in zip(times["own"], times["whole"], strict=True))
            whole_us = statistics.median(times["whole"])
            found.append(EndTime(name, ratio * whole_us, whole_us))
    return found


def _layers(end: Writer | Reader) -> list[str]:
    """The layers that have the channels, and those that get index operators among them."""
    return list(dict.fromkeys(place.tensor.rpartition(".")[0] for place in end.dims))


def _tried(
    space: UnionSpace,
    scores: Scores,
    meter: Limit,
    limits: Mapping[str, float],
    example_inputs: Any,
    removed: float,
) -> _UnionTrial:
    """Choose, let the ends that index operators do not pay for have all channels, cut and measure."""
    writers = space.writers
    keep, masks = hap_masks(writers, scores, removed, least=_LEAST)
    plan = union_plan(writers, keep, masks)
    slow = {one.name for one in end_times(space, keep, masks, example_inputs) if not one.pays}
    wider = [np.ones_like(mask) if name in slow else mask for mask, name in zip(masks, writers.names, strict=True)]
    whole: tuple[str, ...] = ()
    if slow:
        other = union_plan(writers, writers.space.keep_of(plan), wider)
        cost = space.cost(other)
        if all(getattr(cost, measure) <= limit for measure, limit in limits.items()):
            plan, whole = other, tuple(sorted(slow))
    kept, dense = meter.read(cut(space.model, plan))
    used = meter.filled(kept, dense)
    _LOG.info(
        "A network with union streams was cut and measured: %.1f %% of the latency, %.1f %% of what the budget allows; "
        "%d of %d branches have all channels, since their own do not save time.",
        *(100 * kept / dense, 100 * used, len(whole), len(writers.ends)),
    )
    about = {"criterion": scores.criterion, "removed": removed, "least": _LEAST, "streams": "union"}
    plan = replace(plan, provenance={**about, **costs_told(writers.space, plan)})
    return _UnionTrial(plan, used, {"kept": kept, "dense": dense}, whole)


def _run(layers: Sequence[tuple[nn.Module, torch.Tensor]]) -> None:
    for layer, given in layers:
        layer(given)


def _unreachable(budget: Budget, meter: Limit, found: _UnionTrial) -> BudgetError:
    kept, dense = found.told["kept"], found.told["dense"]
    return BudgetError(
        f"The budget ({budget}) cannot be met: with the fraction {_LEAST} of every group and branch {kept:,.0f} "
        f"{meter.unit} were measured, {kept / dense:.1%} of the dense network's. Raise the limit of the latency, or "
        "use shared streams, which need no index operators: leave out streams='union'."
    )
