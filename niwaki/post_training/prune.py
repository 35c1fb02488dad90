"""One call that prunes a trained network: search space, choice in rounds, repair, cut, and what was lost."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn

from niwaki.core.cost import Cost
from niwaki.core.describe import new_weights
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_whole
from niwaki.core.space import SearchSpace
from niwaki.criteria.losses import Loss, loss_of
from niwaki.criteria.normalise import Compare
from niwaki.criteria.score import score
from niwaki.errors import BudgetError, MethodError
from niwaki.post_training.explained import CaP
from niwaki.post_training.iterative import REPAIRS, Repair, choose_iteratively
from niwaki.post_training.named import SURGEON, Method, method_from
from niwaki.post_training.own_choice import OwnChoice
from niwaki.post_training.refine import refine as share_out
from niwaki.post_training.seen_outputs import check_outputs, outputs_for
from niwaki.post_training.surgeon import Surgeon
from niwaki.repair.batchnorm import reestimate_norms
from niwaki.repair.compensate import compensate
from niwaki.search import search_space
from niwaki.selection.budget import TRAINED, Budget, check_budget
from niwaki.surgery.cut import cut
from niwaki.trace.eager import eagerly
from niwaki.trace.model_state import preserved

_ROUNDS = 4
_POSITIONS = 131_072  # of the last repair, which is made once
_LOG = logging.getLogger("niwaki")
Told = Callable[[int, int, float], object]


@dataclass(frozen=True, slots=True)
class PruningReport:
    """What `prune` did to a network. ``dense`` and ``small``: costs. ``losses``: the mean loss on the batches of the
    ``dense`` network, of the ``cut`` one before the repair, and of the ``repaired`` one; empty without batches.
    ``layers``: how many have new weights; ``left``: those that lose inputs without new weights, and why."""

    method: str
    rounds: int
    repair: Repair
    dense: Cost
    small: Cost
    losses: Mapping[str, float]
    layers: int
    left: Mapping[str, str]
    seconds: float

    def __str__(self) -> str:
        macs, params = self.dense.macs / max(self.small.macs, 1), self.dense.params / max(self.small.params, 1)
        rounds = f"{self.rounds} round{'s' if self.rounds > 1 else ''}"
        lines = [
            f"{macs:.2f} times fewer MACs ({self.dense.macs:,} to {self.small.macs:,}), {params:.2f} times fewer "
            f"parameters ({self.dense.params:,} to {self.small.params:,}), by {self.method} in {rounds}, "
            f"{self.seconds:.0f} s."
        ]
        if self.losses:
            told = [f"{value:.3f} {name}" for name, value in self.losses.items()]
            lines.append(f"Mean loss on the batches: {', '.join(told)}.")
        if self.repair == "compensate":
            lines.append(new_weights(self.layers))
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.left.items())])


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """The result of `prune`: the small ``model``, the ``plan`` of its cut, and a ``report``. ``print`` shows it."""

    model: nn.Module = field(repr=False)
    plan: Plan = field(repr=False)
    report: PruningReport

    def __str__(self) -> str:
        return str(self.report)


@eagerly()
def prune(
    model: nn.Module,
    inputs: Any,
    budget: Budget | None = None,
    *,
    batches: Iterable[Any] | None = None,
    loss_fn: Loss | None = None,
    method: Method | None = None,
    rounds: int | None = None,
    repair: Repair | None = None,
    refine: int = 0,
    repair_batches: Iterable[Any] | None = None,
    compare: Compare | None = None,
    readers: bool = False,
    remove: Literal["units", "structures", "both"] = "units",
    new_biases: bool = False,
    ignored: Sequence[str] = (),
    seed: int = 0,
    told: Told | None = None,
) -> Pruned:
    """Make a trained network smaller, in one call and without training.

    It is `niwaki.search_space`, `niwaki.choose_iteratively`, `niwaki.compensate` and `niwaki.cut`, with the defaults
    that lost least where they were compared. Afterwards train on with any trainer, if accuracy is to come back further;
    `niwaki.distillation` gives a loss for that.

    Args:
        model: the trained network, which is not changed.
        inputs: example inputs, as for `niwaki.search_space`.
        budget: what may be left, `niwaki.Budget`. ``latency`` is measured with ``inputs``, in the last round. None only
            where the method says how much is to go: ``niwaki.HAP(removed=0.5)``.
        batches: a few hundred samples of the training data, as ``loss_fn`` takes them; all are held.
        loss_fn: ``loss_fn(model, batch)``, or a loss of torch's own, for batches of inputs and labels.
        method: the criterion that scores units: a name, a function or a mix, as for `niwaki.score`; or ``surgeon`` or
            ``cap``, a `niwaki.Surgeon` or `niwaki.CaP` with these batches; or a `niwaki.HAP`, of which ``hap`` is the
            default one: it chooses units and implants itself, in one round. Default: ``surgeon`` for units,
            ``taylor1`` for structures, ``magnitude`` without batches.
        rounds: how often the network is scored on the way; by default 4, and 1 where no data are given.
        repair: ``compensate`` fits the remaining weights to the outputs of the dense network; ``norms`` re-estimates
            the statistics of BatchNorms; ``none``. Default: ``compensate`` with batches, ``norms`` for a `niwaki.HAP`.
        refine: how often `niwaki.refine` tries all groups, after one round: it takes up to two cuts, repairs and passes
            over three quarters of the batches for each group, and finds the better share of each group. Networks are
            compared by the logits that ``loss_fn`` gets of them.
        repair_batches: as ``batches``, for the last repair and the losses of the report; by default the same. Three
            times as many lost less where it was measured, and only the last repair takes longer with them.
        compare: as for `niwaki.score`; in the whole ``space`` by default, where a `niwaki.Surgeon` or
            `niwaki.CaP` scores.
        readers: as for `niwaki.score`: the weights that read a unit count, too; not for ``surgeon`` and ``cap``.
        remove: ``units``, or whole ``structures``, or ``both``.
        new_biases: as for `niwaki.compensate`: layers get biases that they did not have, beyond the budget.
        ignored: patterns of parameters that stay whole, as for `niwaki.search_space`.
        seed: for criteria with random numbers.
        told: is called after each round, and each group that ``refine`` tries, with its number, how many there are, and
            the share of MACs that is left; `niwaki.report.RoundBar` shows a bar. Each round is a message of the logger
            ``niwaki``, too.

    Raises:
        MethodError: ``batches`` are given without ``loss_fn`` or the other way round, or are missing where ``method``
            or ``repair`` or ``refine`` needs them; ``repair`` is unknown, or ``new_biases`` are asked for without
            compensation; ``readers`` is asked for with ``surgeon`` or ``cap``; ``refine`` is negative, asked for with
            several rounds, or where ``loss_fn`` does not call the network once for logits; a `niwaki.HAP` is given what
            is for scores.
        BudgetError: ``refine`` cannot follow a latency limit; ``budget`` is missing, or given together with a
            `niwaki.HAP` that has a fraction of its own.
        NiwakiError: whatever the functions above raise. The model is as before.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
        >>> data = [(torch.randn(32, 4), torch.randint(0, 3, (32,))) for _ in range(4)]
        >>> pruned = niwaki.prune(
        ...     net, data[0][0], niwaki.Budget(macs=0.5), batches=data, loss_fn=torch.nn.CrossEntropyLoss()
        ... )
        >>> pruned.report.small.macs / pruned.report.dense.macs
        0.5
        >>> pruned.model(data[0][0]).shape
        torch.Size([32, 3])
    """
    begin = time.perf_counter()
    data = None if batches is None else list(batches)
    if (data is None) != (loss_fn is None):
        have, miss = ("batches", "loss_fn") if loss_fn is None else ("loss_fn", "batches")
        raise MethodError(f"niwaki.prune has {have} without {miss}: it needs both, or neither for method='magnitude'.")
    if repair_batches is not None and data is None:
        raise MethodError("niwaki.prune has repair_batches without batches: it needs both, or batches alone.")
    last = data if repair_batches is None else list(repair_batches)
    if any(some is not None and not some for some in (data, last)):
        raise MethodError("There are no batches. Pass some inputs; a loader that is used up gives none.")
    method = method_from(method or _default(data, remove), data, loss_fn)
    own = method if isinstance(method, OwnChoice) else None
    if own is None or budget is not None:
        check_budget(budget, training=False)
    if repair is None:
        repair = "none" if data is None else "compensate" if own is None else own.repair
    if repair not in REPAIRS:
        raise MethodError(f"repair={repair!r} is none of {', '.join(map(repr, REPAIRS))}.")
    if repair != "none" and data is None:
        raise MethodError(f"repair={repair!r} needs batches and loss_fn: without data nothing is known to repair.")
    if new_biases and repair != "compensate":
        raise MethodError(f"new_biases=True is for repair='compensate', which fits them, and not for {repair!r}.")
    if own is not None:
        scoring = {"compare": compare, "refine": refine or None, "readers": readers or None}
        _check_alone(own, {"rounds": None if rounds == 1 else rounds, **scoring})
        rounds = 1
        if remove != "units":
            raise MethodError(f"method={own.name!r} removes units, and remove={remove!r} asks for whole structures.")
    if isinstance(method, Surgeon | CaP):
        compare = compare or "space"  # its values are losses, or parts of the outputs
        if readers is True:
            raise MethodError(
                f"readers=True changes nothing for a {type(method).__name__}, which looks at the layers that read a "
                "unit in any case. Leave it out, or take a criterion such as method='taylor1'."
            )
    if budget is not None:
        _check_refine(refine, rounds, data, remove, budget)
    if refine and data is not None and loss_fn is not None:
        check_outputs(model, data, outputs_for(loss_fn))
    rounds = (1 if data is None or refine else _ROUNDS) if rounds is None else rounds

    space = search_space(model, inputs, ignored, erase=remove != "units")

    trials = refine * len(space.groups)

    def heard(number: int, plan: Plan) -> None:
        share = _share(space, plan)
        _LOG.info("Round %d of %d: %.1f %% of the MACs are left.", number, rounds, 100 * share)
        if told is not None:
            told(number, rounds + trials, share)

    if isinstance(method, OwnChoice):
        assert data is not None and loss_fn is not None
        plan = method.plan(space, budget, data, loss_fn, seed)
        heard(1, plan)
    else:
        assert budget is not None
        plan = choose_iteratively(
            *(space, method, budget, data, loss_fn),
            rounds=rounds,
            compare=compare,
            readers=readers,
            remove=remove,
            between=repair,
            seed=seed,
            example_inputs=inputs if "latency" in budget.limits else None,
            told=heard,
        )
    if refine and data is not None and loss_fn is not None:
        assert budget is not None and not isinstance(method, OwnChoice)
        share, scores = (
            _share(space, plan),
            score(space, method, data, loss_fn, compare=compare, seed=seed, readers=readers),
        )

        def tried(number: int, trials: int, divergence: float) -> None:
            _LOG.info("Group %d of %d: the divergence from the dense network is %.4g.", number, trials, divergence)
            if told is not None:
                told(rounds + number, rounds + trials, share)

        plan = share_out(
            *(space, scores, budget, data, outputs_for(loss_fn)),
            repair=repair,
            compare=compare,
            sweeps=refine,
            told=tried,
        )
    small, losses, layers, left = cut(model, plan), {}, 0, {}
    if last is not None and loss_fn is not None:

        def forward(network: nn.Module, batch: Any) -> None:
            loss_of(loss_fn, network, batch)

        losses = {"dense": _mean_loss(model, last, loss_fn), "cut": _mean_loss(small, last, loss_fn)}
        if repair == "compensate":
            made = compensate(
                *(space, plan, last),
                positions=_POSITIONS,
                forward=forward,
                new_biases=new_biases,
            )
            plan, layers, left = made.plan, len(made.layers), dict(made.left)
            small = cut(made.model, plan)
        elif repair == "norms":
            reestimate_norms(small, last, forward)
        if repair != "none":
            losses["repaired"] = _mean_loss(small, last, loss_fn)
    name = str(plan.provenance["criterion"]) if own is None else own.name
    seconds = time.perf_counter() - begin
    costs = space.cost(), space.cost(plan)
    report = PruningReport(name, rounds, repair, *costs, losses, layers, left, seconds)
    _LOG.info("%s", report)
    return Pruned(small, plan, report)


def _check_refine(refine: int, rounds: int | None, data: list[Any] | None, remove: str, budget: Budget) -> None:
    """Raise an error unless the plan can be refined, or need not be."""
    if not is_whole(refine) or refine < 0:
        raise MethodError(f"refine={refine!r} must be a whole number: how often all groups are tried, 0 for never.")
    if refine and data is None:
        raise MethodError("refine= needs batches and loss_fn: it compares outputs with those of the dense network.")
    if refine and rounds is not None and rounds != 1:
        raise MethodError(
            f"refine= starts from a choice in one round, not from rounds={rounds!r}. Leave one of both out."
        )
    if refine and remove != "units":
        raise MethodError(f"refine= shares units out among groups, and remove={remove!r} asks for whole structures.")
    measure = next((measure for measure in budget.limits if measure not in TRAINED), None)
    if refine and measure is not None:
        raise BudgetError(
            f"refine= compares networks of equal cost, and a limit in {measure} is met by measuring cut ones. Prune "
            "without refine= first, and give it the MACs of that network: niwaki.Budget(macs=pruned.report.small.macs)."
        )


def _share(space: SearchSpace, plan: Plan) -> float:
    """The share of the MACs that is left."""
    return space.cost(plan).macs / max(space.cost().macs, 1)


def _default(data: list[Any] | None, remove: str) -> str:
    """The criterion for what there is."""
    if data is None:
        return "magnitude"
    return SURGEON.name if remove == "units" else "taylor1"


def _check_alone(method: OwnChoice, given: Mapping[str, object]) -> None:
    """Raise `MethodError` if something is ``given`` that is for scores."""
    name = next((name for name, value in given.items() if value is not None), None)
    if name is not None:
        raise MethodError(
            f"{name}={given[name]!r} is for criteria that score units, and method={method.name!r} makes its choice "
            "itself, in one round. Leave it out."
        )


def _mean_loss(model: nn.Module, batches: Sequence[Any], loss_fn: Loss) -> float:
    """In eval mode; the model is as before."""
    with preserved(model), torch.no_grad():
        for module in model.modules():
            module.training = False
        return sum(float(loss_of(loss_fn, model, batch)) for batch in batches) / len(batches)
