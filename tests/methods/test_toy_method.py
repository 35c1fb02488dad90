"""A new method is one new file: its selector, its update, and the two lines that put them together."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import Optimizer
from training import sgd

import niwaki
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.methods import Method, registry
from niwaki.methods.parts import Selector, Stateless, Target, Update
from niwaki.methods.status import Progress
from niwaki.methods.trained_units import TrainedUnits
from niwaki.per_unit.protocol import UnitUpdate

UNTIL = 8


class Last(Selector):
    """The last units of every group leave, one more of each group on every other step."""

    def __init__(self, units: TrainedUnits, target: Target, schedule: niwaki.Schedule) -> None:
        self.target, self.schedule, self._units = target, schedule, units
        self._zero = np.zeros(units.space.num_units, dtype=bool)

    def before(self, step: int) -> None:
        if step < self.schedule.start or self.ended(step - 1) or self._units.leaving.any():
            return
        leaving = self._zero.copy()
        for group in self._units.space.groups:
            rest = group.first + np.flatnonzero(~self._zero[group.numbers])
            leaving[rest[1:][-1:]] = True
        self._units.mark(leaving & ~self._zero, self._zero)

    def observe(self, step: int) -> None:
        pass

    def left(self, step: int) -> float | None:
        return None if not self._units.leaving.any() else float((step - self.schedule.start) % 2 == 0)

    def choose(self, step: int) -> None:
        if self.left(step) == 0:
            self._zero = self._zero | self._units.leaving
            self._units.mark(np.zeros_like(self._zero), self._zero)
        self._units.clear()

    def phase(self, step: int) -> str | None:
        return "done" if self.ended(step - 1) else None

    def ended(self, step: int) -> bool:
        return step >= self.schedule.until

    def removed(self) -> BoolArray:
        return self._zero.copy()

    def zero(self) -> BoolArray:
        return self._zero.copy()

    def removable(self) -> BoolArray:
        return self._zero.copy()

    def shortfall(self, step: int) -> str | None:
        return None if self.ended(step) else "is not whole"

    def progress(self, step: int, phase: str) -> Progress:
        number = int(self._zero.sum())
        return Progress(step, phase, 0, 1, len(self._zero), number, number, 1.0, 1.0)

    def describe(self, now: Progress) -> str:
        return f"step {now.step}, {now.zero} units gone"

    def take_back(self) -> None:
        pass

    def settings(self) -> dict[str, Any]:
        return {"schedule": self.schedule.data}

    def state(self) -> dict[str, Any]:
        return {"gone": torch.from_numpy(self._zero.copy()), "leaving": torch.from_numpy(self._units.leaving.copy())}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._zero = state["gone"].numpy().copy()
        self._units.mark(state["leaving"].numpy(), self._zero)

    def check_state(self, state: Mapping[str, Any]) -> None:
        if state["gone"].shape != self._zero.shape:
            raise ValueError("it is of another network")


class Thirds(Stateless, Update):
    """What leaves is divided by three on every step."""

    def __init__(self, units: TrainedUnits) -> None:
        self._units = units

    def before(self, step: int, left: float | None) -> None:
        pass

    def act(self, step: int, left: float | None) -> None:
        if self._units.subset is not None:
            self._units.subset.apply(UnitUpdate(keep=1 / 3))

    def phase(self, step: int) -> str:
        return "thirds"


class Toy(Method):
    """The two of them."""

    name, label = "toy", "Toy"

    def __init__(self, space: SearchSpace, optimizer: Optimizer, shrink: bool = False) -> None:
        units = TrainedUnits(self.label, space, optimizer, vectorised=True)
        schedule = niwaki.Schedule(start=3, until=UNTIL, periods=1)
        super().__init__(units, Last(units, Target.of(space, None), schedule), Thirds(units), shrink)


class Run:
    """A small network in training."""

    def __init__(self, shrink: bool = False) -> None:
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(4, 9), torch.nn.ReLU(), torch.nn.Linear(9, 7), torch.nn.ReLU(), torch.nn.Linear(7, 2)
        )
        self.space = niwaki.search_space(self.model, torch.randn(1, 4))
        self.optimizer = sgd(self.model.parameters())
        self.method = Toy(self.space, self.optimizer, shrink)
        self.done = 0

    def step(self, number: int = 1) -> Run:
        for _ in range(number):
            data = torch.Generator().manual_seed(self.done)
            self.optimizer.zero_grad()
            self.model(torch.randn(8, 4, generator=data)).square().mean().backward()
            self.optimizer.step()
            self.done += 1
        return self


def test_it_prunes_and_its_cut_is_exact() -> None:
    run = Run().step(3)
    (weight,) = (parameter.detach().clone() for name, parameter in run.model.named_parameters() if name == "0.weight")
    assert repr(run.method) == "Toy: step 3, 0 units gone" and run.method.progress.phase == "thirds"
    run.step()
    assert not run.model[0].weight[-1].any() and weight[-1].any() and run.method.progress.zero == 2
    run.step(UNTIL)
    plan = run.method.plan()
    assert [len(kept) for kept in plan.kept.values()] == [6, 4] and run.method.done
    x = torch.randn(5, 4)
    torch.testing.assert_close(niwaki.cut(run.model, plan)(x), run.model(x))
    assert plan.provenance["method"] == "toy"
    assert "toy" not in registry.methods()


def test_it_resumes_to_the_same_bits() -> None:
    whole = Run().step(UNTIL + 2)
    for done in range(UNTIL + 1):
        first = Run().step(done)
        model, optimizer = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.optimizer.state_dict())
        again = Run()
        again.model.load_state_dict(model)
        again.optimizer.load_state_dict(optimizer)
        again.done = done
        again.step(UNTIL + 2 - done)
        for mine, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
            assert torch.equal(mine, other), f"resumed after {done}"
        assert (again.method.selector.zero() == whole.method.selector.zero()).all()


def test_it_shrinks_on_the_way() -> None:
    dense, run = Run().step(UNTIL + 2), Run(shrink=True)
    run.step(5)
    assert run.method.shrink() and run.model[0].weight.shape == (8, 4)
    run.step(UNTIL - 3)
    run.method.shrink()
    assert [layer.out_features for layer in (run.model[0], run.model[2])] == [6, 4]
    x = torch.randn(5, 4)
    torch.testing.assert_close(run.model(x), niwaki.cut(dense.model, dense.method.plan())(x))


def test_a_plan_before_the_end_says_so() -> None:
    run = Run().step(4)
    with pytest.warns(UserWarning, match=f"Toy has not reached the end of its schedule, step {UNTIL}, so this plan is"):
        run.method.plan()


def test_parts_that_save_under_one_name_are_refused() -> None:
    """One of the two would be lost without a word."""
    run = Run()
    run.method.update.state = lambda: {"gone": 1}  # type: ignore[method-assign]
    with pytest.raises(MethodError, match="The selector and the update of Toy both save 'gone', so that a checkpoint"):
        run.optimizer.state_dict()
