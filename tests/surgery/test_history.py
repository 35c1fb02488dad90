"""A network carries the plan it was cut by: copies know it, and nothing else in the process does."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import niwaki
from niwaki.core.plan import Plan
from niwaki.errors import PlanError
from niwaki.surgery.history import plan_of, remember
from niwaki.testing.models import random_plan

X = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(6, 16), nn.Linear(16, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.last(self.second(self.first(x).relu()).relu())
        return made


def two_plans() -> tuple[nn.Module, Plan, Plan]:
    """A dense network, a plan, and one that removes more."""
    torch.manual_seed(0)
    model = Mlp()
    space = niwaki.search_space(model, X)
    keep = space.keep_of(random_plan(space, np.random.default_rng(1)))
    less = keep.copy()
    for group in space.groups:
        less[group.first + np.flatnonzero(keep[group.numbers])[0]] = keep[group.numbers].sum() == 1
    return model, space.plan(keep), space.plan(less)


def pickled(model: nn.Module) -> nn.Module:
    loaded: nn.Module = pickle.loads(pickle.dumps(model))
    return loaded


def saved_by_torch(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def averaged(model: nn.Module) -> nn.Module:
    inner: nn.Module = AveragedModel(model).module
    return inner


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "deep": copy.deepcopy,
    "shallow": copy.copy,
    "pickled": pickled,
    "pickled twice": lambda model: pickled(pickled(model)),
    "torch.save": saved_by_torch,
    "averaged": averaged,
    "a copy of a copy": lambda model: copy.deepcopy(pickled(model)),
}


@pytest.fixture(params=COPIES)
def copied(request: pytest.FixtureRequest) -> Iterator[Callable[[nn.Module], nn.Module]]:
    yield COPIES[request.param]


def test_a_copy_is_cut_further_by_a_plan_for_the_dense_network(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, plan, more = two_plans()
    small = niwaki.cut(model, plan)
    twin = copied(small)
    assert text(twin) == plan.to_json()
    expected = niwaki.cut(model, more)
    found = niwaki.cut(twin, more)
    assert torch.equal(found(X), expected(X)) and text(found) == more.to_json()
    assert niwaki.check(twin, more, X).holds
    niwaki.shrink(twin, more)
    assert torch.equal(twin(X), expected(X)) and text(twin) == more.to_json()


def test_two_steps_on_a_copy_are_one_plan_for_the_dense_network(copied: Callable[[nn.Module], nn.Module]) -> None:
    model, plan, _ = two_plans()
    twin = copied(niwaki.cut(model, plan))
    again = random_plan(niwaki.search_space(twin, X), np.random.default_rng(0))
    small = niwaki.cut(twin, again)
    whole = plan_of(small)
    assert whole is not None and torch.equal(niwaki.cut(model, whole)(X), small(X))


def test_a_copy_from_before_stays_dense() -> None:
    model, plan, _ = two_plans()
    before = copy.deepcopy(model)
    niwaki.shrink(model, plan)
    assert plan_of(before) is None and plan_of(model) is plan
    assert torch.equal(niwaki.cut(before, plan)(X), model(X))


def test_networks_of_the_same_shapes_are_not_mixed_up() -> None:
    """Each has what was done to it, although a constructor could have made either."""
    model, plan, _ = two_plans()
    for _ in range(20):  # identities are used again
        small = niwaki.cut(model, plan)
        assert plan_of(small) is plan
        del small
        fresh = nn.Sequential(nn.Linear(6, 16))
        assert plan_of(fresh) is None


def test_a_compiled_network_and_the_one_inside_are_one() -> None:
    model, plan, more = two_plans()
    compiled: Any = torch.compile(model, backend="eager")
    niwaki.shrink(compiled, plan)
    assert plan_of(model) is plan_of(compiled) is plan
    niwaki.shrink(model, more)
    assert plan_of(compiled) is more


def test_an_exported_program_carries_its_plan() -> None:
    program = torch.export.export(Mlp(), (X,))
    plan = random_plan(niwaki.search_space(program), np.random.default_rng(0))
    small = niwaki.cut(program, plan)
    assert plan_of(small) is plan and plan_of(copy.deepcopy(small)) is not None


def test_a_network_with_other_layers_than_the_cut_left_it_is_a_dense_one_again() -> None:
    model, plan, more = two_plans()
    small = niwaki.cut(model, plan)
    small.last = nn.Sequential(nn.Linear(small.last.in_features, 20), nn.ReLU(), nn.Linear(20, 2))
    with pytest.raises(PlanError, match="this model"):
        niwaki.cut(small, more)
    own = random_plan(niwaki.search_space(small, X), np.random.default_rng(0))
    assert plan_of(niwaki.cut(small, own)) is own
    assert niwaki.check(small, own, X).holds


def test_nothing_of_it_is_looked_into() -> None:
    """The plan is no setting of the model: the space of the small network is that of one built by hand."""
    model, plan, _ = two_plans()
    small = niwaki.cut(model, plan)
    plain = copy.deepcopy(small)
    del plain.__dict__["_niwaki_plan"]
    ours, theirs = (niwaki.search_space(network, X) for network in (small, plain))
    assert str(ours) == str(theirs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        niwaki.cut(small, random_plan(ours, np.random.default_rng(0)))


def test_a_pickled_network_is_read_without_niwaki() -> None:
    small = nn.Sequential(nn.Linear(2, 2))
    _, plan, _ = two_plans()
    remember(small, plan)
    code = "import pickle, sys; m = pickle.load(sys.stdin.buffer); assert 'niwaki' not in sys.modules; print(len(m))"
    run = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(small), capture_output=True)
    assert run.stdout.split() == [b"1"], run.stderr


def test_a_plan_pickled_by_a_newer_niwaki_is_refused() -> None:
    model, plan, more = two_plans()
    small = pickled(niwaki.cut(model, plan))
    newer = plan.to_json().replace('"format": 3', '"format": 99')
    small.__dict__["_niwaki_plan"] = newer
    with pytest.raises(PlanError, match="format 99, and this niwaki reads formats up to 3"):
        niwaki.cut(small, more)


def text(network: nn.Module) -> str:
    plan = plan_of(network)
    assert plan is not None
    return plan.to_json()
