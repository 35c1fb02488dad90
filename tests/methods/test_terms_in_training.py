"""Terms that no parameters make (shortcuts, poolings, edges of both) in training: methods close their gates."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from optimizers import Calls
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import EraseModules
from niwaki.criteria.registry import named
from niwaki.errors import BudgetError, MethodError
from niwaki.methods.method import Method
from niwaki.per_unit.protocol import UnitUpdate
from niwaki.selection.both import CommonScale
from niwaki.selection.structures import erasable

STEPS = 24
X = torch.randn(4, 3, 4, 4, dtype=torch.float64)


class Edge(nn.Module):
    """What is added of it has weights and has not."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.pool = nn.Conv2d(4, 4, 1), nn.AvgPool2d(3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(x) + self.pool(x)
        return result


class Net(nn.Module):
    """A shortcut, a pooling and a branch; then two edges."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.norm = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.skip, self.largest = nn.Identity(), nn.MaxPool2d(3, 1, 1)
        self.edges, self.head = nn.ModuleList([Edge(), Edge()]), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        x = torch.tanh(self.skip(x) + self.largest(x) + self.norm(self.branch(x)))
        x = torch.tanh(self.edges[0](x) + self.edges[1](x))
        result: Tensor = self.head(x.mean((2, 3)))
        return result


def hesso(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    schedule = niwaki.Schedule(start=3, until=STEPS - 4, periods=2)
    budget = more.pop("budget", niwaki.Budget(units=space.num_units - 3))
    return niwaki.HESSO(space, optimizer, budget, schedule, **{"remove": "structures", "window": 3} | more)


def cric(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    schedule = niwaki.Schedule(start=3, until=STEPS - 4, periods=2)
    budget = niwaki.Budget(units=space.num_units - 3)
    more = {"remove": "structures", "window": 2, "cycle": 3, "cycles": 2, "layers": 0.0} | more
    return niwaki.CRIC(space, optimizer, budget, schedule, **more)


def h2spg(space: niwaki.SearchSpace, optimizer: torch.optim.Optimizer, **more: Any) -> Method:
    budget = more.pop("budget", niwaki.Budget(units=space.num_units - 3))
    schedule = niwaki.Schedule(start=3, until=STEPS - 4)
    return niwaki.H2SPG(space, optimizer, budget, schedule, **{"window": 3, "epsilon": 0.5} | more)


METHODS: dict[str, Callable[..., Method]] = {"hesso": hesso, "cric": cric, "h2spg": h2spg}


class Run:
    def __init__(self, kind: str | None, adam: bool = False, **more: Any) -> None:
        torch.manual_seed(0)
        self.model: Any = Net().double()
        self.space = niwaki.search_space(self.model, X, erase=True)
        make = torch.optim.AdamW if adam else torch.optim.SGD
        self.optimizer = make(self.model.parameters(), lr=0.02)
        self.method = None if kind is None else METHODS[kind](self.space, self.optimizer, **more)

    def loss(self, step: int) -> Tensor:
        x = torch.randn(8, 3, 4, 4, generator=torch.Generator().manual_seed(step)).double()
        result: Tensor = (self.model(x) - x.mean((2, 3)).sin()).square().mean()
        return result

    def train(self, first: int = 0, last: int = STEPS) -> Run:
        for step in range(first, last):
            self.optimizer.zero_grad()
            self.loss(step).backward()
            self.optimizer.step()
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}

    @property
    def gates(self) -> dict[str, float]:
        assert self.method is not None and self.method.units.gates is not None
        gates = self.method.units.gates
        names = [self.space.structures[number].name for number in gates.structures]
        return dict(zip(names, gates.values.tolist(), strict=True))

    @property
    def erased(self) -> set[str]:
        assert self.method is not None
        kept = self.space.keep_of(self.method.plan())
        groups = [group for group in self.space.groups if group.structure is not None]
        return {self.space.structures[g.structure].name for g in groups if not kept[g.first]}  # type: ignore[index]

    def hooks(self) -> int:
        return sum(len(module._forward_hooks) for module in self.model.modules())


def agrees(run: Run) -> None:
    """The law: the network that was trained, its gates as they are, is the cut one, in eval and in train mode."""
    assert run.method is not None
    small: Any = niwaki.cut(run.model, run.method.plan())
    assert not any(module._forward_hooks for module in small.modules())
    for train in (False, True):
        run.model.train(train)
        small.train(train)
        with torch.no_grad():
            assert torch.allclose(small(X), run.model(X), atol=1e-12)


def only(space: niwaki.SearchSpace, names: set[str]) -> np.ndarray[Any, Any]:
    """Scores by which these structures go first, the other ones never, of 1 each."""
    values = np.ones(space.num_units)
    for group in space.groups:
        if group.structure is not None and space.structures[group.structure].name in names:
            values[group.first] = 1e-3
    return values


@pytest.mark.parametrize("adam", [False, True])
@pytest.mark.parametrize("kind", METHODS)
def test_terms_leave_as_structures_of_weights_do(kind: str, adam: bool) -> None:
    run = Run(kind, adam)
    assert set(run.gates.values()) == {1.0} and run.hooks() > 0
    run.train()
    assert run.method is not None and run.method.done and len(run.erased) == 3
    closed = {name for name, value in run.gates.items() if value == 0}
    assert closed and closed <= run.erased and {run.gates[name] for name in run.gates.keys() - closed} == {1.0}
    paths = {path for one in run.space.structures if one.name in closed for path in one.gates}
    assert run.hooks() == len(paths)
    if kind == "h2spg":  # at the end what was chosen goes first, whatever is left of it
        chosen = run.method.selector.choice.units  # type: ignore[attr-defined]
        assert np.array_equal(chosen, run.method.selector.removed())
    agrees(run)


def test_h2spg_brings_gates_to_zero_by_itself() -> None:
    """With steps that are large enough; the half-space projection makes the last of them."""
    run = Run(None)
    run.optimizer.param_groups[0]["lr"] = 0.3
    run.method = h2spg(run.space, run.optimizer, penalty=0.5, budget=niwaki.Budget(units=run.space.num_units - 6))
    run.train(0, STEPS - 6)
    gone = {name for name, value in run.gates.items() if value == 0}
    assert gone and not run.method.selector.ended(run.method.step)
    assert all(run.method.selector.removed()[unit_of(run, name)] for name in gone)
    run.train(STEPS - 6, STEPS)
    assert gone <= run.erased
    agrees(run)


def unit_of(run: Run, name: str) -> int:
    numbers = {run.space.structures[g.structure].name: g.first for g in run.space.groups if g.structure is not None}
    return numbers[name]


EDGES = {"edges.0", "largest", "edges.1.pool"}
WITH_EDGES = EDGES | {"edges.0.layer", "edges.0.pool"}


def with_edges(**more: Any) -> Run:
    """HESSO that is told what goes: functions say themselves what terms are worth."""
    run = Run(None)
    budget = niwaki.Budget(units=run.space.num_units - len(WITH_EDGES))
    run.method = hesso(run.space, run.optimizer, criteria=lambda space: only(space, EDGES), budget=budget, **more)
    return run


def test_an_edge_fades_in_its_weights_and_its_gates() -> None:
    """Linearly: after step t of a period of T steps, (T - t) / T is left."""
    run = with_edges()
    assert run.method is not None
    start, until = 5, 13  # of the first period: its selection, and its last step
    for step in range(start, until):
        run.train(step if step > start else 0, step + 1)
        fading = {name: value for name, value in run.gates.items() if value != 1}
        assert fading and fading.keys() <= WITH_EDGES
        left = (until - 1 - step) / (until - start)
        assert all(math.isclose(value, left, rel_tol=1e-5, abs_tol=1e-6) for value in fading.values())
    run.train(until)
    assert run.erased == WITH_EDGES and not run.weights["edges.0.layer.weight"].any()
    assert run.weights["edges.1.layer.weight"].any()
    (edit,) = run.method.plan().edits_of(EraseModules)
    assert {"edges.0.pool", "edges.1.pool", "largest"} <= {*edit.gated}
    agrees(run)


def test_terms_of_programs_are_for_choose() -> None:
    """A loop that trains the class does not run the program that stands for it."""
    run = Run(None)
    run.space = niwaki.search_space(run.model, X, erase=True, as_graph=True)
    budget = niwaki.Budget(units=run.space.num_units - 3)
    batches = [(X, torch.randint(0, 3, (4,)))]
    scores = niwaki.score(run.space, "taylor1", batches, nn.CrossEntropyLoss())
    plan = niwaki.choose(run.space, scores, budget, remove="structures")
    assert niwaki.check(run.space.model, plan, X).holds
    run.method = hesso(run.space, run.optimizer, budget=niwaki.Budget(units=run.space.num_units - 1))
    assert run.method.units.gates is None and len(run.train().erased) == 1
    run.method.detach()
    with pytest.raises(BudgetError, match=r"\d+ terms with gates stay while a method trains: the gates are in a prog"):
        hesso(run.space, run.optimizer, budget=niwaki.Budget(units=2))
    bare = niwaki.search_space(Pooled(), torch.randn(2, 8), erase=True, as_graph=True)
    with pytest.raises(BudgetError, match="could drive to zero: all that can be erased has gates in a program"):
        hesso(bare, torch.optim.SGD(bare.model.parameters(), lr=0.1), budget=niwaki.Budget(units=2))


class Pooled(nn.Module):
    """All that can be erased is a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool, self.head = nn.Conv1d(1, 3, 1), nn.AvgPool1d(3, 1, 1), nn.Linear(24, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x[:, None])
        result: Tensor = self.head((torch.sin(y) + self.pool(y)).flatten(1))
        return result


@pytest.mark.parametrize("kind", METHODS)
def test_the_plain_loop_trains_the_same(kind: str) -> None:
    fast, plain = (Run(kind, vectorised=fast).train() for fast in (True, False))
    assert fast.erased == plain.erased and fast.gates == plain.gates
    assert all(torch.allclose(weight, plain.weights[name], atol=1e-12) for name, weight in fast.weights.items())


def test_open_gates_change_nothing() -> None:
    """Where a shortcut is the stream itself, gradients are added up in another order."""
    measured, bare = Run("hesso").train(0, 5), Run(None).train(0, 5)
    assert all(torch.allclose(weight, bare.weights[name], atol=1e-14) for name, weight in measured.weights.items())


PHASES = {
    "hesso": {1: "waiting", 4: "scoring", 9: "fading", 16: "fading", 22: "done"},
    "cric": {1: "waiting", 6: "trial", 12: "fading", 18: "fading", 22: "done"},
    "h2spg": {1: "waiting", 4: "scoring", 9: "half-space", 22: "done"},
}


CASES = [(kind, stop, True) for kind, stops in PHASES.items() for stop in stops]


@pytest.mark.parametrize(("kind", "stop", "shrink"), [*CASES, ("hesso", 9, False), ("cric", 6, False)])
def test_a_run_resumes_to_the_same_bits(kind: str, stop: int, shrink: bool) -> None:
    def run() -> Run:
        policy = niwaki.ShrinkPolicy(cost=0.1) if shrink else False
        return with_edges(shrink=policy) if kind == "hesso" else Run(kind, adam=True, shrink=policy)

    first, second = run().train(0, stop), run()
    assert first.method is not None and first.method.progress.phase == PHASES[kind][stop]
    second.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    second.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    if shrink and kind == "hesso":  # the edge leaves with its weights and gates, in mid-training
        assert ("edges.0.layer.weight" in first.weights) == (stop < 16)
    whole, second = first.train(stop), second.train(stop)
    assert whole.weights.keys() == second.weights.keys() and whole.gates == second.gates
    assert all(torch.equal(weight, second.weights[name]) for name, weight in whole.weights.items())
    assert whole.erased == second.erased and whole.hooks() == second.hooks()


def test_what_is_zero_leaves_in_mid_training() -> None:
    """The edge with its weights, and poolings: the rest trains as it would have."""
    runs = [with_edges(shrink=shrink).train() for shrink in (False, niwaki.ShrinkPolicy(cost=0.1))]
    whole, small = runs
    assert small.method is not None and whole.method is not None
    assert "edges.0.layer.weight" not in small.weights and small.method.plan().kept == whole.method.plan().kept
    assert torch.allclose(small.model(X), whole.model(X), atol=1e-10)
    agrees(small)


def test_slopes_are_those_that_the_step_consumed() -> None:
    """Of several passes, after a scaler's factor and clipping; what an overflow has left does not count."""
    run = Run("hesso")
    assert run.method is not None and run.method.units.gates is not None
    gates = run.method.units.gates
    run.optimizer.zero_grad()
    (run.loss(0) + run.loss(1)).backward()
    expected = gates.slopes().clone()
    gates.forget()
    assert float(expected.abs().min()) > 0
    run.optimizer.zero_grad()
    for step in (0, 1):
        (1024 * run.loss(step)).backward()
    for weight in run.model.parameters():
        weight.grad.div_(1024)
    norm = nn.utils.clip_grad_norm_(run.model.parameters(), 1e-3)
    assert float(norm) > 1e-3
    torch.testing.assert_close(gates.slopes(), expected * 1e-3 / norm, rtol=1e-3, atol=0)
    gates.forget()
    run.optimizer.zero_grad()
    (float("inf") * run.loss(0)).backward()  # a scaler skips this step
    run.optimizer.zero_grad()
    run.loss(0).backward()
    assert not gates.slopes().any()


def test_a_closure_takes_several_passes() -> None:
    run = Run("hesso")
    assert run.method is not None and run.method.units.gates is not None
    gates = run.method.units.gates
    for _ in range(3):
        run.optimizer.zero_grad()
        run.loss(0).backward()
    several = gates.slopes(closure=True)
    gates.forget()
    run.loss(0).backward()
    torch.testing.assert_close(several, gates.slopes(), rtol=1e-5, atol=1e-12)


def test_a_term_that_matters_stays() -> None:
    """The target is made by the shortcut, and the pooling is nothing beside it: by criteria of weights alone, too."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.skip, self.pool = nn.Identity(), nn.AvgPool1d(9, 1, 4)
            self.layers = nn.ModuleList(nn.Conv1d(2, 2, 1) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.skip(x) + self.pool(x) + self.layers[0](x) + self.layers[1](x)
            return result

    for criteria in ({"magnitude": 1.0}, {"cosine": 0.5, "taylor1": 0.5}, None):
        torch.manual_seed(0)
        model, x = Two(), torch.randn(16, 2, 32)
        space = niwaki.search_space(model, x, erase=True)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        schedule = niwaki.Schedule(start=2, until=20)
        budget = niwaki.Budget(units=space.num_units - 1)
        method: Method = (
            niwaki.H2SPG(space, optimizer, budget, schedule)
            if criteria is None
            else niwaki.HESSO(space, optimizer, budget, schedule, criteria=criteria, remove="structures")
        )
        with torch.no_grad():
            for layer in model.layers:
                layer.weight.mul_(3)  # type: ignore[operator, union-attr]
        for _ in range(20):
            optimizer.zero_grad()
            (model(x) - 4 * x).square().mean().backward()
            optimizer.step()
        kept = space.keep_of(method.plan())
        gone = [
            space.structures[g.structure].name for g in space.groups if g.structure is not None and not kept[g.first]
        ]
        assert gone == ["pool"] if criteria else len(gone) == 1 and gone != ["skip"]


def test_choose_after_training() -> None:
    """With batches any criterion says what terms are worth; without, they stay, and an error says so."""
    run = Run(None).train(0, 8)
    space, model = run.space, run.model
    batches = [(torch.randn(8, 3, 4, 4).double(), torch.randint(0, 3, (8,))) for _ in range(2)]
    loss = nn.CrossEntropyLoss()
    terms = [unit_of(run, name) for name in ("skip", "largest", "edges.0.pool", "edges.1.pool")]
    scores = {name: niwaki.score(space, name, batches, loss) for name in ("magnitude", "taylor1", "cka", "lamp")}
    for found in scores.values():
        assert not found.silent and (found.values[terms] > 0).all()
    assert not any(module._forward_hooks for module in model.modules())
    model.eval()
    gate = torch.ones((), dtype=torch.float64, requires_grad=True)
    handle = model.skip.register_forward_hook(lambda module, args, result: result * gate)
    slopes = [torch.autograd.grad(loss(model(x), y), gate)[0].abs() for x, y in batches]
    handle.remove()
    assert scores["taylor1"].values[terms[0]] == pytest.approx(float(sum(slopes)) / 2)
    ratio = scores["magnitude"].values[terms] / scores["magnitude"].values[terms[0]]
    one, two = (niwaki.score(space, name, batches, loss).values for name in ("taylor1", "taylor2"))
    whole = [g.first for g in space.groups if g.structure is not None and space.structures[g.structure].producers]
    effect = (one / one[whole].mean() + two / two[whole].mean())[terms]
    assert ratio == pytest.approx(effect / effect[0])
    budget = niwaki.Budget(units=space.num_units - 3)
    plan = niwaki.choose(space, scores["taylor1"], budget, remove="structures")
    small = niwaki.cut(model, plan)
    assert niwaki.check(model, plan, X).holds and small is not model
    bare = niwaki.score(space, "magnitude")
    assert {*terms} < {*bare.silent} and niwaki.criteria.consensus(space, [bare]).silent == bare.silent
    (edit,) = niwaki.choose(space, bare, budget, remove="structures").edits_of(EraseModules)
    assert {"skip", "largest", "edges.0.pool", "edges.1.pool"}.isdisjoint(edit.structures)
    with pytest.raises(BudgetError, match=r"\d stay because they have no parameters, and the scores say nothing of"):
        niwaki.choose(space, bare, niwaki.Budget(units=6), remove="structures")


def test_terms_on_the_common_scale() -> None:
    """Beside structures of weights, which are worth what they cost, a term is worth its share of their mean."""
    run = Run(None)
    space, units = run.space, erasable(run.space)
    assert space.erasures is not None
    around = {number: [one for one in space.erasures.around(number) if one in units] for number in units}
    everything, price = np.ones(space.num_units, dtype=bool), np.linspace(1, 2, space.num_units)
    price[[unit_of(run, "skip"), unit_of(run, "largest")]] = 1e-9  # they cost nothing
    saliency, weights = np.ones(space.num_units), dict[int, int]()
    for number, unit in units.items():
        weights[unit] = space.structures[number].params
        saliency[unit] = max(weights[unit], 1)  # as salient per weight as all others
    usual = np.mean([saliency[unit] for unit, size in weights.items() if size])
    saliency[unit_of(run, "skip")], saliency[unit_of(run, "largest")] = usual, 3 * usual
    saliency[unit_of(run, "skip..largest")] = 5 * usual
    values = CommonScale.of(space, units, around, everything, saliency, price, "group")
    mean = np.mean([price[unit] for unit, size in weights.items() if size])
    assert values.own[unit_of(run, "skip")] == pytest.approx(mean)
    assert values.own[unit_of(run, "largest")] == pytest.approx(3 * mean)
    assert values.own[unit_of(run, "skip..largest")] == pytest.approx((5 - 1 - 3) * mean)


def test_hooks_go_whatever_happens() -> None:
    run = Run(None)
    with pytest.raises(BudgetError):
        hesso(run.space, run.optimizer, budget=niwaki.Budget(macs=0.001))
    assert run.hooks() == 0
    run.model.skip.register_forward_hook = None  # so that the second of them fails
    with pytest.raises(TypeError):
        hesso(run.space, run.optimizer)
    del run.model.skip.register_forward_hook
    assert run.hooks() == 0 and not run.optimizer._optimizer_step_pre_hooks
    method = hesso(run.space, run.optimizer)
    method.detach()
    assert run.hooks() == 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        method.attach()
    run.method = method
    run.train(0, 10)
    with pytest.warns(UserWarning, match=r"HESSO has faded \d terms that no parameters make .*Cut it by the method's"):
        method.detach()
    assert run.hooks() == 0


def test_a_loop_that_does_not_see_the_gates_is_told() -> None:
    run = Run(None)
    run.method = hesso(run.space, run.optimizer)
    other = copy.deepcopy(run.model)
    with pytest.raises(MethodError, match="No gradient has reached the gates of terms without parameters"):
        for step in range(6):
            for weight, copied in zip(run.model.parameters(), other.parameters(), strict=True):
                weight.grad = torch.ones_like(copied) * (step + 1)
            run.optimizer.step()
    states = Run("hesso").optimizer.state_dict()
    states["niwaki"]["state"]["gates"] = torch.ones(1)
    with pytest.raises(MethodError, match=r"damaged: its gates are not \d+ numbers, one per term"):
        Run("hesso").optimizer.load_state_dict(states)


def test_gates_as_weights_by_hand() -> None:
    """What criteria say of them, alone or beside weights, also if they had not faded; and what an update does."""
    run = Run("hesso")
    assert run.method is not None and run.method.units.gates is not None
    gates, engine = run.method.units.gates, run.method.units.engine
    run.loss(0).backward()
    gates.values.fill_(0.5)
    slope = dict(zip(run.gates, gates.slopes().tolist(), strict=True))
    bare, edge = unit_of(run, "skip"), unit_of(run, "edges.0")
    criteria = [named(name) for name in ("taylor1", "taylor2", "magnitude")]
    found = engine.values(criteria, 0)
    assert found[:, bare].tolist() == pytest.approx([0.5 * abs(slope["skip"]), (0.5 * slope["skip"]) ** 2 / 2, 0.5])
    weights = type(run.method.units.engine._inner)(run.space, run.optimizer)  # type: ignore[attr-defined]
    beside = (found - weights.values(criteria, 0))[:, edge].tolist()
    assert beside == pytest.approx([0.5 * abs(slope["edges.0"]), (0.5 * slope["edges.0"]) ** 2 / 2, 0.0])
    twice = engine.values(criteria, 0, size=torch.full((run.space.num_units,), 2.0))
    assert float(twice[0, bare]) == pytest.approx(abs(slope["skip"]))
    which, factors = np.zeros(run.space.num_units, dtype=bool), torch.ones(run.space.num_units, dtype=torch.float64)
    which[[bare, edge]], factors[[bare, edge]] = True, torch.tensor([0.5, 1.0], dtype=torch.float64)
    subset = engine.subset(which)
    subset.remember()
    with torch.no_grad():
        subset.apply(UnitUpdate(keep=factors, penalty_step=0.25 * torch.ones_like(factors)))
    lr = run.optimizer.param_groups[0]["lr"]
    for name, factor in (("skip", 0.5), ("edges.0", 1.0), ("largest", None)):
        step = 0.5 if factor is None else factor * (0.5 - lr * slope[name] - lr * 0.25 * 0.5)
        assert run.gates[name] == pytest.approx(step, rel=1e-6)


@pytest.mark.parametrize("kind", METHODS)
def test_no_step_waits_for_the_device(kind: str) -> None:
    run = Run(kind)
    assert run.method is not None
    waiting = {"_local_scalar_dense", "nonzero", "item", "is_nonzero", "equal", "masked_select", "unique"}
    quiet = 0
    for step in range(STEPS - 6):
        run.optimizer.zero_grad()
        run.loss(step).backward()
        before = run.method.progress
        with Calls() as calls:
            run.optimizer.step()
        after = run.method.progress
        if (before.phase, before.marked, before.zero) == (after.phase, after.marked, after.zero):
            tried = kind == "cric" and before.phase == "trial"  # whose last step is a boundary, too
            assert tried or not waiting & set(calls.counts), f"step {step}: {calls.counts}"
            quiet += 1
    assert quiet > 8
