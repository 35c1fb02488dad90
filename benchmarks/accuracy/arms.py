"""What is compared. Each arm trains one network of a task within a budget, in as many steps as all others.

A later arm is one line of `ARMS`: a value that is called with a `Setting` and returns the finished training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np

import niwaki
from benchmarks.accuracy import peers
from benchmarks.accuracy.pruned_first import PRUNED_FIRST
from benchmarks.accuracy.setting import DEFAULT_MOMENT, Setting
from benchmarks.accuracy.training import Training
from niwaki import implants, unions
from niwaki.methods import registry
from niwaki.methods.method import Method
from niwaki.methods.scoring import WEIGHTS

_LEFT_OUT = {"hesso", "lhspg"}
SCORED = 10  # batches that a criterion with a gradient sees
MASK_STEPS = 300  # in which masks are learnt, or as many as the whole run has


Train = Callable[[Setting], Training]


@dataclass(frozen=True, slots=True)
class Arm:
    """``cuts``: it has a budget. ``prunes``: it has a moment; ``own`` is the moment of its defaults, if it has one.
    ``gradual``: it needs some steps to prune in, so that it has no moment 0. ``baseline``: not one of niwaki's methods.
    ``needs_widths``: of HESSO's network. ``erases``: whole structures leave, of a task whose network has some; with
    ``layers`` none but whole layers, of a language model of Hugging Face."""

    train: Train
    cuts: bool = True
    prunes: bool = True
    own: float | None = None
    gradual: bool = False
    baseline: bool = True
    needs_widths: bool = False
    erases: bool = False
    layers: bool = False


def dense(setting: Setting) -> Training:
    """The whole network from the first step to the last."""
    run = Training(setting.task, setting.seed)
    run.advance()
    return run


def narrow(setting: Setting) -> Training:
    """The final widths of HESSO's network, from the first step, with fresh weights."""
    assert setting.widths is not None
    run = Training(setting.task, setting.seed, setting.widths)
    run.advance()
    return run


def random_subnetwork(setting: Setting) -> Training:
    """A random valid choice of structures within the budget is all there is from the first step, with fresh weights."""
    run = Training(setting.task, setting.seed)
    space = run.space(erase=True)
    drawn = np.random.default_rng(setting.seed).random(space.num_units)
    for group in space.groups:  # over the cost, only the draw counts
        drawn[group.first] *= 1 if group.structure is None else max(1, space.structures[group.structure].macs)
    scores = niwaki.score(space, lambda _: drawn)
    run.cut(niwaki.choose(space, scores, setting.budget, remove="structures"))
    setting.task.renew(run.model)
    run.advance()
    return run


@dataclass(frozen=True, slots=True)
class OneShot:
    """Dense training until the moment, one cut by ``criterion``, and training until the end."""

    criterion: str
    batches: int = 0

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        run.advance(setting.until)
        space = run.space()
        data = run.more_batches(self.batches) or None
        scores = niwaki.score(space, self.criterion, data, setting.task.loss, seed=setting.seed)
        run.cut(niwaki.choose(space, scores, setting.budget))
        run.advance()
        return run


@dataclass(frozen=True, slots=True)
class LearntMasks:
    """Dense training until the moment, steps beside it in which masks and scales are learnt on held-out batches, one
    cut, and training until the end. ``streams``: shared by all branches; a union of what they write; or one of which
    they read a part, too."""

    streams: Literal["shared", "union", "read"] = "shared"

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        run.advance(setting.until)
        masks = niwaki.DDPMasks(
            setting.task.held_out_batches(), setting.task.loss, steps=min(MASK_STEPS, run.steps), seed=setting.seed
        )
        shared = self.streams == "shared"
        space = run.space(erase=not shared)
        streams = space if shared else unions.UnionSpace.of(space, readers=self.streams == "read")
        plan = niwaki.choose(streams, masks, setting.budget)
        masks.fold_(run.optimizer)
        run.cut(plan)
        run.advance()
        return run


@dataclass(frozen=True, slots=True)
class HessianAware:
    """Dense training until the moment, one cut by the relative trace of the Hessian with implants in place of the share
    ``implants`` of what would leave, or by ``"value"`` (`niwaki.implants.choose`), and training until the end."""

    implants: float | Literal["value"]

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        run.advance(setting.until)
        space = run.space()
        data = run.more_batches(SCORED)
        scores = niwaki.score(space, "relative_hessian_trace", data, setting.task.loss, seed=setting.seed)
        run.cut(implants.choose(space, scores, setting.budget, implants=self.implants))
        run.advance()
        return run


@dataclass(frozen=True, slots=True)
class Pruned:
    """A method prunes, or erases, between the start and the moment; then training goes on."""

    name: str
    erase: bool = False
    narrow: bool = False
    layers: bool = False

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        schedule = niwaki.Schedule(start=setting.start, until=setting.until)
        run.attach(self.name, setting.budget, schedule, self.erase, self.narrow, self.layers)
        run.advance()
        return run


@dataclass(frozen=True, slots=True)
class Varied:
    """A method with other arguments than its own: ``build`` attaches it to a training. ``periods``: of its schedule;
    ``erase``: of a space that offers structures."""

    build: Callable[[Training, niwaki.SearchSpace, niwaki.Budget, niwaki.Schedule], Method]
    periods: int = 10
    erase: bool = False

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        schedule = niwaki.Schedule(setting.start, setting.until, self.periods)
        run.follow(self.build(run, run.space(erase=self.erase), setting.budget, schedule), schedule)
        run.advance()
        return run


def _with(named: Callable[..., Method], **options: Any) -> Callable[..., Method]:
    """To be built with these options."""

    def build(run: Training, space: niwaki.SearchSpace, budget: niwaki.Budget, schedule: niwaki.Schedule) -> Method:
        return named(space, run.optimizer, budget, schedule, **options)

    return build


def _cric(
    run: Training,
    space: niwaki.SearchSpace,
    budget: niwaki.Budget,
    schedule: niwaki.Schedule,
    criteria: tuple[str, ...],
) -> Method:
    return niwaki.CRIC(space, run.optimizer, budget, schedule, loss=run.loss, criteria=dict.fromkeys(criteria, 1.0))


def _shared_controller(
    run: Training, space: niwaki.SearchSpace, budget: niwaki.Budget, schedule: niwaki.Schedule
) -> Method:
    loss, batches = run.task.loss, run.task.held_out_batches()
    return niwaki.ATO(space, run.optimizer, budget, schedule, loss_fn=loss, batches=batches, generator="shared")


def varied(build: Callable[..., Method], periods: int = 10, erase: bool = False) -> Arm:
    """A method with other arguments than its own."""
    return Arm(Varied(build, periods, erase), own=DEFAULT_MOMENT, gradual=True, baseline=False, erases=erase)


def by(criterion: str, *others: str) -> Callable[..., Method]:
    """HESSO with these criteria, each as much as any, in place of its mix."""
    return _with(niwaki.HESSO, criteria=dict.fromkeys((criterion, *others), 1.0))


def cric_by(criterion: str, *others: str) -> Callable[..., Method]:
    """HESSO-CRIC with these."""
    return partial(_cric, criteria=(criterion, *others))


def method(name: str, erase: bool = False, narrow: bool = False, layers: bool = False) -> Arm:
    """A registered method with its default arguments."""
    train = Pruned(name, erase, narrow, layers)
    return Arm(train, own=DEFAULT_MOMENT, gradual=True, baseline=False, erases=erase, layers=layers)


def _narrowing() -> list[str]:
    narrows = registry.erasing()
    return [name for name in sorted(registry.methods()) if name not in _LEFT_OUT and narrows.get(name, True)]


ARMS: Mapping[str, Arm] = {
    "dense": Arm(dense, cuts=False, prunes=False),
    "hesso": method("hesso"),
    "narrow": Arm(narrow, prunes=False, needs_widths=True),
    "random": Arm(OneShot("random")),
    "magnitude": Arm(OneShot("magnitude")),
    "taylor1": Arm(OneShot("taylor1", SCORED)),
    "taylor2": Arm(OneShot("taylor2", SCORED)),
    "torch-pruning": Arm(peers.GroupNorm(), gradual=True),
    "torch-pruning-taylor": Arm(peers.Taylor()),
    **{name: Arm(train, baseline=False) for name, train in PRUNED_FIRST.items()},
    "ddp-masks": Arm(LearntMasks(), baseline=False),
    "ddp-masks-union": Arm(LearntMasks("union"), baseline=False),
    "ddp-masks-read": Arm(LearntMasks("read"), baseline=False),
    "hap": Arm(HessianAware(0.0), baseline=False),
    "hap-implants": Arm(HessianAware(0.1), baseline=False),
    "hap-value": Arm(HessianAware("value"), baseline=False),
    **{name: method(name) for name in _narrowing()},
    "ato-shared": varied(_shared_controller),
    "hesso-shrinking": varied(_with(niwaki.HESSO, shrink=True)),
    "hesso-one-step": varied(_with(niwaki.HESSO), periods=1),
    "hesso-separated": varied(_with(niwaki.HESSO, separate=0.65)),
    "hesso-space": varied(_with(niwaki.HESSO, compare="space")),
    "hesso-isomorphic": varied(_with(niwaki.HESSO, compare="isomorphic")),
    "hesso-magnitude": varied(by("magnitude")),
    "hesso-taylor": varied(by("taylor1", "taylor2")),
    "hesso-space-taylor": varied(_with(niwaki.HESSO, compare="space", criteria={"taylor1": 1.0, "taylor2": 1.0})),
    "hesso-cric-magnitude": varied(cric_by("magnitude")),
    "hesso-cric-taylor1": varied(cric_by("taylor1")),
    "hesso-cric-taylor2": varied(cric_by("taylor2")),
    "hesso-cric-cosine": varied(cric_by("cosine")),
    "random-structures": Arm(random_subnetwork, prunes=False, erases=True),
    "h2spg": method("h2spg", erase=True),
    "h2spg-mix": varied(_with(niwaki.H2SPG, criteria=WEIGHTS), erase=True),
    "h2spg-mix-both": varied(_with(niwaki.H2SPG, criteria=WEIGHTS, remove="both"), erase=True),
    "hesso-structures": method("hesso", erase=True),
    "hesso-layers": method("hesso", erase=True, layers=True),
    "h2spg-layers": method("h2spg", erase=True, layers=True),
    "hesso-cric-structures": method("hesso-cric", erase=True),
    "h2spg-both": method("h2spg", erase=True, narrow=True),
    "hesso-both": method("hesso", erase=True, narrow=True),
}
