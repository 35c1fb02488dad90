"""Choose a plan: the units of most saliency within a budget, or those that a learnt mask keeps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.dying import structure_units
from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace, check_space
from niwaki.criteria.mix import finite
from niwaki.criteria.normalise import Compare, check_compare
from niwaki.criteria.score import Scores
from niwaki.errors import BudgetError
from niwaki.masks.learner import MaskLearner
from niwaki.performance.fit import fit_latency
from niwaki.performance.meters import Limit, meters
from niwaki.performance.union_latency import fit_union_latency
from niwaki.selection import STRUCTURES, UNITS, Removal, SelectionRequest, free_note, removal_named
from niwaki.selection.budget import (
    MODELLED,
    Budget,
    check_budget,
    check_left,
    followed,
    provenance,
    slack_note,
)
from niwaki.trace.model_state import preserved
from niwaki.unions.plans import choose as choose_unions
from niwaki.unions.plans import costs_told
from niwaki.unions.space import UnionSpace


def choose(
    space: SearchSpace | UnionSpace,
    scores: Scores | MaskLearner,
    budget: Budget,
    *,
    compare: Compare | None = None,
    example_inputs: Any = None,
    remove: Literal["units", "structures", "both"] = "units",
) -> Plan:
    """The plan that keeps the most of ``scores`` and meets every limit of ``budget`` from below.

    The gap left under the tightest limit is at most 1 % (5 % for latency), or nothing more fits into it:
    ``plan.provenance["tight"]`` then gives the cost of the next step. ``plan.provenance["free"]`` names structures that
    stay since their erasing would save nothing, such as shortcuts under a limit in MACs.

    Measured limits are met by cutting and measuring networks, which takes seconds (the logger ``niwaki`` tells of
    each); the measurements are in ``plan.provenance["measured"]``. For ``latency`` every operator is timed in them, and
    units are priced by their time: a unit of few MACs that takes long is removed first. Where these times do not
    predict the latency, and for other measured limits, units are priced by their MACs; ``plan.provenance["priced"]``
    gives the method and the reason.

    Args:
        space: the search space. One with ``streams="union"`` has one threshold for the scores of all units and all
            channels of branches, as `niwaki.unions.choose`: ``compare`` and ``remove`` are not for it, and the budget
            limits ``macs``, ``params`` and ``memory``, and with ``example_inputs`` the ``latency``: networks are cut
            and measured, and a branch for whose channels index operators do not pay has all of its stream.
        scores: the saliency of each unit, from `niwaki.score`. Or what learns on batches which units to keep:
            `niwaki.DDPMasks`, for limits in macs, params, units and memory, in a space that is `niwaki.timed` also in
            latency, and for units alone. It learns here; for union streams what each branch writes, and reads.
        budget: the limits on the cost of the network.
        compare: units are compared by their fraction of the score of their ``group``; by that of all ``isomorphic``
            groups; or by the score itself, in the whole ``space`` (for criteria that are comparable across layers).
            ``layer``: by their fraction in the group, for scores that were taken layer by layer. Default: as in
            ``niwaki.score(..., compare=...)``, otherwise in the group.
        example_inputs: for ``latency``: the inputs of the measured passes, on the model's device; a tensor or tuple is
            positional, a dict is keywords. ``activations`` are then measured with them too, otherwise they are those
            for the inputs of the search space. The model is not changed. In a space that is `niwaki.timed` they may be
            left out: the latency is what is predicted, and not measured.
        remove: ``units`` makes layers narrower. ``structures`` erases whole ones, of a space made with ``erase=True``:
            those of the least score in all, as long as outputs follow from inputs; of more than 200, one after the
            other by score per cost. ``both`` does what keeps most for the budget: a unit inside of a structure is paid
            for once, by the unit or by the structure. In the whole ``space`` scores add up as they are, and a structure
            is worth its own, or that of the units inside of it if that is more; otherwise a unit of the mean score of
            its group is worth what it costs, and structures are worth to one another what their scores are, and all
            together what they cost. Measured limits are for ``units`` and ``both``.

    Raises:
        BudgetError: the budget cannot be met; the message gives the least reachable cost and the pins that cause it. Or
            there is nothing to erase.
        MethodError: ``space`` is not a search space, a score is not finite, or no mask can be learnt from the batches.
        PlanError: no values of the model's attributes could follow the choice.
        UnknownName: a pattern in ``budget.round_to`` matches nothing, or ``remove`` is not one of the three values.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5))
    >>> space.cost().macs, space.cost(plan).macs
    (60, 30)
    """
    if isinstance(space, UnionSpace):
        return _of_unions(space, scores, budget, {"compare": compare, "example_inputs": example_inputs}, remove)
    check_space(space)
    if isinstance(scores, MaskLearner):
        check_budget(budget, training=False)
        _check_learnt(space, budget, removal_named(remove), {"compare": compare, "example_inputs": example_inputs})
    if not space.num_units:
        warnings.warn(
            "The search space has no units, so the plan removes nothing. print(space) tells why.", stacklevel=2
        )
    if isinstance(scores, MaskLearner):
        return _learnt(space, scores, budget)
    return chosen(space, scores, budget, None, compare, example_inputs, remove)


def chosen(
    space: SearchSpace,
    scores: Scores,
    budget: Budget,
    removed: BoolArray | None,
    compare: Compare | None,
    example_inputs: Any,
    remove: str,
) -> Plan:
    """As `choose`, after the units ``removed`` [num_units] have left: they are not taken back, nor compared with."""
    removal = removal_named(remove)
    if removal is STRUCTURES:
        removal.compared(compare)  # a choice of structures that would ignore it is refused
    compare = compared(scores, compare)
    check_budget(budget, training=False)
    if np.shape(scores.values) != (space.num_units,):
        raise BudgetError(
            f"The scores are for {np.size(scores.values)} units, but the search space has {space.num_units}. "
            "Score the same space that you choose from."
        )
    values = finite(space, scores.values, scores.criterion)
    saliency = values - min(0.0, values.min(initial=0.0))
    if removal is not STRUCTURES and _of_structures_alone(space, saliency):
        raise BudgetError(
            f"The scores by {scores.criterion} are of structures alone, and all units that make layers narrower have "
            "0. Use remove='structures', or a criterion of units."
        )
    silent = None if removal is UNITS else _silent(space, scores)
    limits = budget.absolute(space, followed(space) if example_inputs is None else MODELLED)
    measured = {measure: limit for measure, limit in budget.measured.items() if measure not in limits}
    if removal is STRUCTURES and measured:
        raise BudgetError(
            f"A limit on {', '.join(measured)} is met by measuring networks with narrower layers, not by erasing "
            "structures alone. Use remove='both', or set a limit in macs, params or memory."
        )

    def selected(under: Mapping[str, float], space: SearchSpace) -> BoolArray:
        if not under or not space.num_units:
            return np.ones(space.num_units, dtype=bool) if removed is None else ~removed
        request = SelectionRequest(under, removed, budget.steps, compare=compare, staying=silent, untrained=True)
        return removal.select(space, saliency, request)

    keep = selected(limits, space)
    check_left(space, removal, keep, limits, budget.steps, untrained=True, silent=silent)
    about: dict[str, Any] = {"criterion": scores.criterion}
    if removal is not UNITS:
        about["remove"] = removal.name
        if told := free_note(space, keep, limits, untrained=True):
            about["free"] = told
    if removal is not STRUCTURES and compare != "group":
        about["compare"] = compare
    if measured:
        found: Mapping[str, Limit] = meters(space, measured, example_inputs)
        with preserved(space.model):
            trial, about["priced"] = fit_latency(space, found, keep, limits, selected)
        keep, about["measured"] = trial.keep, trial.told
    elif removal is not STRUCTURES and (told := slack_note(space, keep, limits, budget)):
        about["tight"] = told
    return space.plan(keep, provenance(space, keep, budget, **about))


def _silent(space: SearchSpace, scores: Scores) -> BoolArray | None:
    """What stays since the scores say nothing of it, [num_units]; None if they speak of all."""
    if not scores.silent:
        return None
    silent = np.zeros(space.num_units, dtype=bool)
    silent[list(scores.silent)] = True
    return silent


def _learnt(space: SearchSpace, learner: MaskLearner, budget: Budget) -> Plan:
    """The plan of a mask that ``learner`` learns."""
    keep = learner.learn(space, budget)
    about: dict[str, Any] = {"masks": {"name": learner.name, **learner.settings()}}
    if told := slack_note(space, keep, budget.absolute(space, followed(space, MODELLED)), budget):
        about["tight"] = told
    return space.plan(keep, provenance(space, keep, budget, **about)).with_edits(learner.records())


def _check_learnt(space: SearchSpace, budget: Budget, removal: Removal, unused: Mapping[str, object]) -> None:
    """Raise `BudgetError` where something is asked for that a mask which is learnt cannot give."""
    known = followed(space, MODELLED)
    measured = [measure for measure in budget.measured if measure not in known]
    if measured:
        raise BudgetError(
            f"A mask that is learnt follows limits in {', '.join(known)}, not in {', '.join(measured)}. "
            "First find the MACs that meet it with niwaki.score and niwaki.choose, and learn with these: "
            "niwaki.Budget(macs=space.cost(plan).macs)."
        )
    if removal is not UNITS:
        raise BudgetError(f"A mask that is learnt keeps units, and remove={removal.name!r} asks for whole structures.")
    for name, value in unused.items():
        if value is not None:
            raise BudgetError(f"{name}= is for scores, and a mask that is learnt has none. Leave it out.")


def _of_unions(
    space: UnionSpace, scores: Scores | MaskLearner, budget: Budget, unused: Mapping[str, object], remove: str
) -> Plan:
    """The plan for union streams; raise `BudgetError` where something is asked for that it does not give."""
    given = [f"{name}=" for name, value in unused.items() if value is not None]
    measured = not isinstance(scores, MaskLearner) and isinstance(budget, Budget) and "latency" in budget.limits
    if measured and "example_inputs=" in given:
        given.remove("example_inputs=")
    if removal_named(remove) is not UNITS:
        given.append(f"remove={remove!r}")
    if given:
        raise BudgetError(
            f"{given[0]} is not for union streams, which have one threshold for the scores of all channels. Leave it "
            "out, or make the space without streams='union'."
        )
    if isinstance(scores, MaskLearner):
        return _learnt_unions(space, scores, budget)
    if measured and unused["example_inputs"] is not None:
        return fit_union_latency(space, scores, budget, unused["example_inputs"])
    return choose_unions(space.writers, scores, budget)


def _learnt_unions(space: UnionSpace, learner: MaskLearner, budget: Budget) -> Plan:
    """The plan of a mask of what branches write and read, and of the units that no stream carries."""
    check_budget(budget, training=False)
    _check_learnt(space.gated.space, budget, UNITS, {})
    keep = space.gated.keep(learner.learn(space.gated.space, budget), space.num_units)
    plan = space.plan(keep)
    about = {
        "masks": {"name": learner.name, **learner.settings()},
        "streams": "union",
        "budget": dict(budget.limits),
        **costs_told(space.writers.space, plan),
    }
    return replace(plan, provenance=about).with_edits(learner.records())


def _of_structures_alone(space: SearchSpace, saliency: FloatArray) -> bool:
    whole = np.isin(np.arange(space.num_units), list(structure_units(space).values()))
    return bool((saliency[whole] > 0).any() and not (saliency[~whole] > 0).any() and not whole.all())


def compared(scores: Scores, compare: Compare | None) -> Compare:
    """The scope in which `choose` compares ``scores``: the argument's, else that of the scores, else the group.

    Raises:
        BudgetError: these are no scores, there is no such way, or it is "layer" and the scores were not taken layer by
            layer.
    """
    if not isinstance(scores, Scores):
        raise BudgetError(
            f"scores is a {type(scores).__qualname__}, but must be what niwaki.score returns: "
            "niwaki.score(space, 'magnitude'), or niwaki.score(space, lambda space: values) for values of your own."
        )
    if compare is None:
        compare = "group" if scores.compare is None else scores.compare
    check_compare(compare, error=BudgetError)
    if compare == "layer" and scores.compare != "layer":
        raise BudgetError(
            "compare='layer' is for scores that were taken layer by layer, which these were not: "
            "niwaki.score(space, criterion, compare='layer')."
        )
    return compare
