"""What is compared. Each arm trains one network of a task within a budget, in as many steps as all others.

A later arm is one line of `ARMS`: a value that is called with a `Setting` and returns the finished training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import niwaki
from benchmarks.accuracy import peers
from benchmarks.accuracy.setting import DEFAULT_MOMENT, Setting
from benchmarks.accuracy.training import Training
from niwaki.methods import registry

_LEFT_OUT = {"hesso", "lhspg", *(name for name, narrows in registry.erasing().items() if not narrows)}
SCORED = 10  # batches that a criterion with a gradient sees


Train = Callable[[Setting], Training]


@dataclass(frozen=True, slots=True)
class Arm:
    """``cuts``: it has a budget. ``prunes``: it has a moment; ``own`` is the moment of its defaults, if it has one.
    ``gradual``: it needs some steps to prune in, so that it has no moment 0. ``baseline``: not one of niwaki's methods.
    ``needs_widths``: of HESSO's network."""

    train: Train
    cuts: bool = True
    prunes: bool = True
    own: float | None = None
    gradual: bool = False
    baseline: bool = True
    needs_widths: bool = False


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
class Pruned:
    """A method prunes between the start and the moment; then training goes on."""

    build: registry.Build

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        run.attach(self.build, setting.budget, niwaki.Schedule(start=setting.start, until=setting.until))
        run.advance()
        return run


def method(name: str) -> Arm:
    """A registered method with its default arguments."""
    return Arm(Pruned(registry.methods()[name]), own=DEFAULT_MOMENT, gradual=True, baseline=False)


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
    **{name: method(name) for name in sorted(registry.methods()) if name not in _LEFT_OUT},
}
