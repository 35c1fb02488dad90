"""What terms that no parameters make are worth: their gates' gradients, beside structures of weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from terms import Run, X, hesso, unit_of
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import EraseModules
from niwaki.criteria.registry import named
from niwaki.errors import BudgetError
from niwaki.methods.method import Method
from niwaki.per_unit.protocol import UnitUpdate
from niwaki.selection.both import CommonScale
from niwaki.selection.structures import erasable


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


def test_slopes_are_those_that_the_step_consumed() -> None:
    """Of several passes, after a scaler's factor and clipping; what an overflow has left does not count, and where
    it is all that there is, nothing is told."""
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
    (float("inf") * run.loss(0)).backward()
    assert not gates.slopes().any()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_passes_whose_gradients_were_zeroed_do_not_count(early: bool, set_to_none: bool) -> None:
    """As of batches that are left out, also of a step that a scaler skips, wherever the loop zeroes gradients; those of
    several passes add up."""
    run = Run("hesso")
    assert run.method is not None and run.method.units.gates is not None
    gates = run.method.units.gates

    def taught(steps: list[float], zeroed: int) -> Tensor:
        gates.forget()
        run.optimizer.zero_grad(set_to_none)
        for number, scale in enumerate(steps):
            if number == zeroed and early:
                run.optimizer.zero_grad(set_to_none)
            loss = scale * run.loss(number)
            if number == zeroed and not early:
                run.optimizer.zero_grad(set_to_none)
            loss.backward()
        return gates.slopes().clone()

    plain = taught([0.0, 0.0, 1.0, 1.0], 0)
    assert float(plain.abs().min()) > 0
    for left_out in (1.0, float("inf")):
        torch.testing.assert_close(taught([left_out, left_out, 1.0, 1.0], 2), plain, rtol=1e-6, atol=1e-12)
    both = taught([1.0, 1.0, 1.0, 1.0], 0)
    assert float((both - plain).abs().max()) > 1e-3


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
