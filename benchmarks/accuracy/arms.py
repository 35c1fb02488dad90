"""What is compared. Each arm trains one network of a task within a budget, in as many steps as all others.

A later arm is one line of `ARMS`: a value that is called with a `Setting` and returns the finished training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

import niwaki
from benchmarks.accuracy import peers
from benchmarks.accuracy.pruned_first import PRUNED_FIRST
from benchmarks.accuracy.setting import DEFAULT_MOMENT, Setting
from benchmarks.accuracy.training import Training
from niwaki import implants
from niwaki.criteria.normalise import Compare
from niwaki.methods import registry
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


def learnt_masks(setting: Setting) -> Training:
    """Dense training until the moment, steps beside it in which masks and scales are learnt on held-out batches, one
    cut, and training until the end."""
    run = Training(setting.task, setting.seed)
    run.advance(setting.until)
    masks = niwaki.DDPMasks(
        setting.task.held_out_batches(), setting.task.loss, steps=min(MASK_STEPS, run.steps), seed=setting.seed
    )
    plan = niwaki.choose(run.space(), masks, setting.budget)
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
class Hesso:
    """HESSO with units compared as ``compare`` says, and other ``criteria`` than its mix, if any; or such that the
    network shrinks on the way."""

    compare: Compare = "group"
    criteria: tuple[str, ...] = ()
    shrink: bool = False

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        schedule = niwaki.Schedule(start=setting.start, until=setting.until)
        criteria = dict.fromkeys(self.criteria, 1.0) or WEIGHTS
        method = niwaki.HESSO(
            *(run.space(), run.optimizer, setting.budget, schedule),
            criteria=criteria,
            compare=self.compare,
            shrink=self.shrink,
        )
        run.follow(method, schedule)
        run.advance()
        return run


def varied(compare: Compare = "group", criteria: tuple[str, ...] = (), shrink: bool = False) -> Arm:
    """HESSO with other arguments than its own."""
    return Arm(Hesso(compare, criteria, shrink), own=DEFAULT_MOMENT, gradual=True, baseline=False)


def h2spg_by_mix(setting: Setting) -> Training:
    """H2SPG's update of the structures that HESSO's scores choose."""
    run = Training(setting.task, setting.seed)
    schedule = niwaki.Schedule(start=setting.start, until=setting.until)
    space = run.space(erase=True)
    run.follow(niwaki.H2SPG(space, run.optimizer, setting.budget, schedule, criteria=WEIGHTS), schedule)
    run.advance()
    return run


@dataclass(frozen=True, slots=True)
class AutoTrainOnce:
    """ATO with another controller than the paper's, ``generator`` of `niwaki.masks`."""

    generator: str

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        schedule = niwaki.Schedule(start=setting.start, until=setting.until)
        method = niwaki.ATO(
            *(run.space(), run.optimizer, setting.budget, schedule),
            loss_fn=setting.task.loss,
            batches=setting.task.held_out_batches(),
            generator=self.generator,
        )
        run.follow(method, schedule)
        run.advance()
        return run


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
    "ddp-masks": Arm(learnt_masks, baseline=False),
    "hap": Arm(HessianAware(0.0), baseline=False),
    "hap-implants": Arm(HessianAware(0.1), baseline=False),
    "hap-value": Arm(HessianAware("value"), baseline=False),
    **{name: method(name) for name in _narrowing()},
    "ato-shared": Arm(AutoTrainOnce("shared"), own=DEFAULT_MOMENT, gradual=True, baseline=False),
    "hesso-shrinking": varied(shrink=True),
    "hesso-space": varied("space"),
    "hesso-isomorphic": varied("isomorphic"),
    "hesso-magnitude": varied(criteria=("magnitude",)),
    "hesso-taylor": varied(criteria=("taylor1", "taylor2")),
    "hesso-space-taylor": varied("space", ("taylor1", "taylor2")),
    "random-structures": Arm(random_subnetwork, prunes=False, erases=True),
    "h2spg": method("h2spg", erase=True),
    "h2spg-mix": Arm(h2spg_by_mix, own=DEFAULT_MOMENT, gradual=True, baseline=False, erases=True),
    "hesso-structures": method("hesso", erase=True),
    "hesso-layers": method("hesso", erase=True, layers=True),
    "h2spg-layers": method("h2spg", erase=True, layers=True),
    "hesso-cric-structures": method("hesso-cric", erase=True),
    "h2spg-both": method("h2spg", erase=True, narrow=True),
    "hesso-both": method("hesso", erase=True, narrow=True),
}
