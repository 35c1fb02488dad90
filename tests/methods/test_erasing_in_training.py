"""H2SPG, HESSO and CRIC on structures, alone and beside units: valid choices in the budget, nothing else touched,
plain equals fast."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Erase, EraseModules, Zeroed
from niwaki.errors import BudgetError, MethodError, UnknownName
from niwaki.methods.method import Method

STEPS = 30


class Net(nn.Module):
    """Two parallel layers, one of which has to stay; residual branches, one with a branch inside; a wide one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 8)
        self.steps = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.up, self.inner, self.down = nn.Linear(8, 24), nn.Linear(24, 24), nn.Linear(24, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.left(x) + self.right(x)
        for step in self.steps:
            x = x + step(x).tanh()
        y = self.up(x).relu()
        x = x + self.down(y + self.inner(y))
        result: Tensor = self.head(x)
        return result


def hesso(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    schedule = niwaki.Schedule(start=4, until=STEPS - 4, periods=2)
    budget = more.pop("budget", niwaki.Budget(macs=0.5))
    return niwaki.HESSO(space, optimizer, budget, schedule, **{"remove": "structures", "window": 3} | more)


def cric(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    schedule = niwaki.Schedule(start=3, until=STEPS - 4, periods=2)
    budget = more.pop("budget", niwaki.Budget(macs=0.5))
    more = {"remove": "structures", "window": 2, "cycle": 3, "cycles": 2, "layers": 0.0} | more
    return niwaki.CRIC(space, optimizer, budget, schedule, **more)


def h2spg(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    budget = more.pop("budget", niwaki.Budget(macs=0.5))
    schedule = niwaki.Schedule(start=4, until=STEPS - 4)
    return niwaki.H2SPG(space, optimizer, budget, schedule, window=3, epsilon=0.5, **more)


METHODS: dict[str, Callable[..., Method]] = {
    "hesso": hesso,
    "cric": cric,
    "h2spg": h2spg,
    "hesso both": partial(hesso, remove="both"),
    "cric both": partial(cric, remove="both"),
    "h2spg both": partial(h2spg, remove="both"),
    "h2spg by criteria": partial(h2spg, criteria=niwaki.HESSO.CRITERIA),
}


class Run:
    def __init__(self, kind: str | None, adam: bool = False, **more: Any) -> None:
        torch.manual_seed(0)
        self.model = Net().double()
        self.space = niwaki.search_space(self.model, torch.randn(2, 6).double(), erase=True)
        make = torch.optim.AdamW if adam else torch.optim.SGD
        self.optimizer = make(self.model.parameters(), lr=0.02)
        self.method = None if kind is None else METHODS[kind](self.space, self.optimizer, **more)

    def train(self, first: int = 0, last: int = STEPS) -> Run:
        for step in range(first, last):
            generator = torch.Generator().manual_seed(step)
            x = torch.randn(16, 6, generator=generator).double()
            self.optimizer.zero_grad()
            (self.model(x) - x[:, :3].sin()).square().mean().backward()
            self.optimizer.step()
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.model.named_parameters()}


def erased(run: Run) -> set[str]:
    assert run.method is not None
    kept = run.space.keep_of(run.method.plan())
    return {
        run.space.structures[group.structure].name
        for group in run.space.groups
        if group.structure is not None and not kept[group.first]
    }


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_the_budget_is_met_by_a_valid_choice_that_is_zero(kind: str, adam: bool) -> None:
    run = Run(kind, adam).train()
    assert run.method is not None and run.method.done
    plan = run.method.plan()
    assert run.space.cost(plan).macs <= 0.5 * run.space.cost().macs
    assert len(erased(run) & {"left", "right"}) < 2 and plan.edits_of(Zeroed)
    assert plan.edits_of(EraseModules) or "both" in kind
    small = niwaki.cut(run.model, plan)
    x = torch.randn(5, 6).double()
    assert torch.allclose(small(x), run.model(x), atol=1e-12)
    assert sum(p.numel() for p in small.parameters()) == run.space.cost(plan).params
    narrows = sum(group.units for group in run.space.width_groups) if "both" in kind else 0
    assert f"of {sum(one.erasable for one in run.space.structures) + narrows} units" in repr(run.method)


@pytest.mark.parametrize("kind", METHODS)
def test_the_plain_loop_trains_the_same(kind: str) -> None:
    fast, plain = (Run(kind, vectorised=fast).train() for fast in (True, False))
    assert erased(fast) == erased(plain)
    for name, weight in fast.weights.items():
        assert torch.allclose(weight, plain.weights[name], atol=1e-12), name


@pytest.mark.parametrize("kind", METHODS)
def test_what_does_not_leave_takes_the_bare_step(kind: str) -> None:
    """One step after the choice, from the same weights: all but the producers of what leaves is the same to the bit."""
    run = Run(kind).train(0, STEPS // 2 + 2)
    bare = Run(None)
    bare.model.load_state_dict(run.model.state_dict())
    assert run.method is not None
    leaving = {
        piece.tensor
        for group in run.space.groups
        if (run.method.units.leaving | run.method.units.zero)[group.numbers].any()
        for piece in group.slices
        if piece.role.zeroed_by_method
    }
    run.train(STEPS // 2 + 2, STEPS // 2 + 3)
    bare.train(STEPS // 2 + 2, STEPS // 2 + 3)
    moved = {name for name, weight in run.weights.items() if not torch.equal(weight, bare.weights[name])}
    assert moved and moved <= leaving


@pytest.mark.parametrize("kind", ["h2spg", "h2spg by criteria"])
def test_the_rest_takes_the_bare_step_from_beginning_to_end(kind: str) -> None:
    """On every step of a whole run, with the optimizer's state: all weights but those that make the results of what was
    chosen move to where the bare optimizer moves them, to the bit."""
    run, bare = Run(kind, adam=True), Run(None, adam=True)
    assert run.method is not None
    touched: set[str] = set()
    for step in range(STEPS):
        bare.model.load_state_dict(run.model.state_dict())
        state = {key: value for key, value in run.optimizer.state_dict().items() if key != "niwaki"}
        bare.optimizer.load_state_dict(copy.deepcopy(state))
        run.train(step, step + 1)
        bare.train(step, step + 1)
        touched |= {name for name, weight in run.weights.items() if not torch.equal(weight, bare.weights[name])}
    chosen = run.method.selector.choice.units  # type: ignore[attr-defined]
    producers = {
        piece.tensor
        for group in run.space.groups
        if chosen[group.numbers].any()
        for piece in group.slices
        if piece.role.zeroed_by_method
    }
    assert touched == producers and len(producers) < len(run.weights) - 2


@pytest.mark.parametrize("kind", ["hesso", "h2spg"])
def test_what_is_inside_goes_with_the_cut(kind: str) -> None:
    """Of a branch with a branch inside, only what makes its own result is driven to zero; the rest trains on."""
    run = Run(kind)
    names = {one.name: one for one in run.space.structures}
    inner, outer = names["inner"], next(one for one in names.values() if one.name != "inner" and one.macs > 1000)
    assert run.space.structures.index(outer) == inner.inside
    limit = niwaki.Budget(macs=run.space.cost().macs - outer.macs)
    run = Run(kind, budget=limit)
    with torch.no_grad():
        for name in outer.parameters:
            run.model.get_parameter(name).mul_(1e-3)  # redundant by any of the criteria
    run.train()
    assert run.method is not None and {outer.name, "inner"} <= erased(run)
    weights = run.weights
    assert all(not weights[name].any() for name in outer.producers)
    assert all(weights[name].any() for name in inner.producers)


@pytest.mark.parametrize("stop", [6, 12, STEPS - 2])
@pytest.mark.parametrize("kind", METHODS)
def test_a_run_resumes_to_the_same_bits(kind: str, stop: int) -> None:
    whole, first, second = Run(kind, adam=True).train(), Run(kind, adam=True).train(0, stop), Run(kind, adam=True)
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.train(stop)
    assert all(torch.equal(weight, second.weights[name]) for name, weight in whole.weights.items())
    assert erased(whole) == erased(second)


@pytest.mark.parametrize("kind", METHODS)
def test_what_is_zero_leaves_in_mid_training(kind: str) -> None:
    """Modules too: the rest trains as it would have, and the plan is the same."""
    whole, small = Run(kind).train(), Run(kind, shrink=niwaki.ShrinkPolicy(cost=0.1)).train()
    assert small.method is not None and whole.method is not None
    left = dict(small.model.named_parameters())
    assert sum(p.numel() for p in left.values()) == small.space.cost(small.method.plan()).params
    assert small.method.plan().kept == whole.method.plan().kept
    held = {id(parameter) for group in small.optimizer.param_groups for parameter in group["params"]}
    assert held == {id(parameter) for parameter in left.values()}
    x = torch.randn(5, 6).double()
    assert torch.allclose(small.model(x), whole.model(x), atol=1e-10)
    assert torch.allclose(niwaki.cut(small.model, small.method.plan())(x), small.model(x))


PHASES = {
    "hesso": {2: "waiting", 5: "scoring", 10: "fading", 20: "fading"},
    "cric": {1: "waiting", 5: "trial", 14: "fading", 22: "fading"},
    "h2spg": {2: "waiting", 5: "scoring", 10: "half-space"},
    "h2spg by criteria": {2: "waiting", 5: "scoring", 10: "half-space"},
}
IN_PHASES = [(kind, stop, phase) for kind, stops in PHASES.items() for stop, phase in stops.items()]


@pytest.mark.parametrize(("kind", "stop", "phase"), [*IN_PHASES, *((kind, STEPS - 2, "done") for kind in METHODS)])
def test_a_run_that_may_shrink_resumes_to_the_same_bits(kind: str, stop: int, phase: str) -> None:
    """From before anything is chosen to the end, when structures have left the model."""

    def run() -> Run:
        return Run(kind, adam=True, shrink=niwaki.ShrinkPolicy(cost=0.1))

    first, second = run().train(0, stop), run()
    assert first.method is not None and first.method.progress.phase == phase
    shrunk = len(first.weights) < len(second.weights)
    assert shrunk == (stop >= 20)
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    whole, second = first.train(stop), second.train(stop)
    assert whole.weights.keys() == second.weights.keys()
    assert all(torch.equal(weight, second.weights[name]) for name, weight in whole.weights.items())
    assert erased(whole) == erased(second)


def test_a_support_that_is_known() -> None:
    """The target needs one of the branches only; the others are driven out, and the loss is what it was."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(nn.Linear(6, 3, bias=False) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.branches[0](x[:, :6])
            for number, branch in enumerate(list(self.branches)[1:], 1):
                result = result + branch(x[:, 6 * number : 6 * number + 6])
            return result

    torch.manual_seed(1)
    model, x = Sum(), torch.randn(256, 24)
    with torch.no_grad():
        target = x[:, 12:18] @ torch.randn(6, 3)
    space = niwaki.search_space(model, x, erase=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = niwaki.H2SPG(
        space, optimizer, niwaki.Budget(macs=0.25), niwaki.Schedule(start=100, until=300), epsilon=0.1, penalty=0.01
    )
    for _ in range(320):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    kept = space.keep_of(method.plan())
    names = {space.structures[g.structure].name: bool(kept[g.first]) for g in space.groups if g.structure is not None}
    assert [names[f"branches.{number}"] for number in range(4)] == [False, False, True, False]
    assert float(loss) < 1e-4


def test_what_is_left_over_of_a_budget_returns() -> None:
    """Where the last step was far too large, smaller structures that were erased before come back."""
    space = niwaki.search_space(Net(), torch.randn(2, 6), erase=True, as_graph=True)
    values = np.ones(space.num_units)
    for group in space.groups:
        if group.structure is not None:
            name = space.structures[group.structure].name
            values[group.first] = {"steps.0": 1e-3, "steps.1": 2e-3}.get(name, 1.0)
    scores = niwaki.score(space, lambda _: values)
    limit = space.cost().macs - 300  # the two save 256, and the next costs the most
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=limit), remove="structures")
    (edit,) = plan.edits_of(Erase)
    assert [one.structure for one in edit.operands] == ["up..down"] and space.cost(plan).macs < limit - 256


SCHEDULE = niwaki.Schedule(start=3, until=24, periods=3)
WIDTHS: dict[str, Callable[..., Method]] = {
    "hesso": lambda s, o: niwaki.HESSO(s, o, niwaki.Budget(macs=0.6), SCHEDULE, window=3, compare="space"),
    "cric": lambda s, o: niwaki.CRIC(s, o, niwaki.Budget(macs=0.6), SCHEDULE, window=3, cycle=3, layers=0),
    "dhspg": lambda s, o: niwaki.DHSPG(s, o, niwaki.Budget(macs=0.6), SCHEDULE, window=3, compare="space"),
    "hspg": lambda s, o: niwaki.HSPG(s, o, niwaki.Budget(macs=0.6), SCHEDULE, penalty=0.05),
    "adahspg": lambda s, o: niwaki.AdaHSPG(s, o, niwaki.Budget(macs=0.6), SCHEDULE, penalty=0.05),
}


@pytest.mark.parametrize("kind", WIDTHS)
def test_narrower_layers_are_the_same_in_a_space_with_structures(kind: str) -> None:
    """To the bit, and in the same plan."""
    weights, kept = [], []
    for erase in (False, True):
        run = Run(None)
        run.space = niwaki.search_space(run.model, torch.randn(2, 6).double(), erase=erase)
        method = WIDTHS[kind](run.space, run.optimizer)
        weights.append(run.train().weights)
        plan = method.plan()
        kept.append({group.name: tuple(plan.kept[group.name]) for group in run.space.width_groups})
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())
    assert kept[0] == kept[1]


def test_errors() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    bare = niwaki.search_space(model, torch.randn(2, 6))
    for method in METHODS.values():
        with pytest.raises(
            BudgetError, match="There is no structure that could be erased: the search space was made wi"
        ):
            method(bare, optimizer)
    space = niwaki.search_space(model, torch.randn(2, 6), erase=True)
    for name, method in METHODS.items():
        least = (
            r"with every group at its least size and without \d s" if "both" in name else r"by erasing: without \d of"
        )
        with pytest.raises(BudgetError, match=f"cannot be met.* {least}"):
            method(space, optimizer, budget=niwaki.Budget(macs=0.001))
    with pytest.raises(MethodError, match="compare='group' is for units. A structure is alone in its group"):
        hesso(space, optimizer, compare="group")
    schedule = niwaki.Schedule(start=1, until=29, periods=2)
    with pytest.raises(UnknownName, match="remove='layers' is not what can be removed"):
        niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), schedule, remove="layers")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="memory"):
        niwaki.H2SPG(space, optimizer, niwaki.Budget(macs=0.5), schedule, memory=2.0)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), copy.deepcopy(model).parameters(), strict=True))
