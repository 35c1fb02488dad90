"""Layers that get a bias from the repair: the fit, the law, costs, files, training, a second cut, export."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Keep, NewBias
from niwaki.core.plan import Plan
from niwaki.errors import MethodError, PlanError
from niwaki.repair.compensate import Compensated
from niwaki.surgery.history import plan_of
from niwaki.surgery.zero import masked


class Plain(nn.Module):
    """No layer behind the first has a bias or a norm, and inputs are far from zero on average."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, bias=False)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False)
        self.last = nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.second(self.first(x).relu()).relu()).relu()
        scores: Tensor = self.last(x.mean((2, 3)))
        return scores


X = torch.randn(40, 3, 6, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.fixture(scope="module")
def space() -> niwaki.SearchSpace:
    torch.manual_seed(0)
    return niwaki.search_space(Plain().double().eval(), X[:2])


def thinned(space: niwaki.SearchSpace) -> Plan:
    """Every group loses a half of its units."""
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        keep[group.first : group.first + group.units : 2] = False
    return space.plan(keep)


@pytest.fixture(scope="module")
def made(space: niwaki.SearchSpace) -> Compensated:
    return niwaki.compensate(space, thinned(space), X.split(10), ridge=1e-9, new_biases=True)


def test_the_fit_is_centred_and_loses_less(space: niwaki.SearchSpace, made: Compensated) -> None:
    about_zero = niwaki.compensate(space, thinned(space), X.split(10), ridge=1e-9)
    assert about_zero.plan.edits == thinned(space).edits and not any(fit.centred for fit in about_zero.layers.values())
    assert [edit.module for edit in made.plan.edits_of(NewBias)] == ["second", "up", "last"]
    assert all(fit.centred and fit.norm is None for fit in made.layers.values())
    assert "with a new bias, in the plan: second, up, last" in str(made)
    model, small = space.model, niwaki.cut(made.model, made.plan)
    with torch.no_grad():
        read, target = small.first(X).relu(), model.second(model.first(X).relu())  # type: ignore[operator]
        columns = nn.functional.unfold(read, 3).transpose(1, 2).flatten(0, 1)
        rows = torch.cat([columns, columns.new_ones(len(columns), 1)], 1)
        best = torch.linalg.lstsq(rows, target.flatten(2).transpose(1, 2).flatten(0, 1)).solution
        kept = list(made.plan.edits_of(NewBias)[0].rows)
        torch.testing.assert_close(small.second.bias, best[-1, kept], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(small.second.weight.flatten(1).T, best[:-1, kept], rtol=1e-5, atol=1e-5)
        far = [(one(X) - model(X)).square().mean() for one in (small, niwaki.cut(about_zero.model, thinned(space)))]
        torch.testing.assert_close(small(X).mean(0), model(X).mean(0))  # the last layer's shift is whole
    assert far[0] < far[1]


def test_the_cut_is_the_masked_network(space: niwaki.SearchSpace, made: Compensated, tmp_path: Path) -> None:
    small = niwaki.cut(made.model, made.plan)
    with masked(made.model, made.plan):
        reference = made.model(X).detach().clone()
    torch.testing.assert_close(small(X), reference, rtol=1e-10, atol=1e-12)
    assert niwaki.check(made.model, made.plan, X).holds and made.model.second.bias is None
    cost = space.cost(made.plan)
    assert cost.params == sum(p.numel() for p in small.parameters())
    assert cost.memory == sum(p.numel() * p.itemsize for p in small.parameters())
    assert Plan.from_json(made.plan.to_json()).edits == made.plan.edits
    assert "second gets a bias for 4 outputs" in {str(edit) for edit in made.plan.edits}
    niwaki.save(small, tmp_path / "out")
    again = niwaki.load(Plain().double().eval(), tmp_path / "out")
    assert torch.equal(again(X), small(X))
    program = niwaki.export(small, X[:2])
    torch.testing.assert_close(program.module()(X[:2]), small(X[:2]))


def test_prune_gives_biases_and_their_plan(space: niwaki.SearchSpace) -> None:
    given = {"batches": [X], "loss_fn": lambda model, batch: model(batch).square().mean(), "method": "magnitude"}
    pruned = niwaki.prune(space.model, X[:2], niwaki.Budget(params=0.6), rounds=1, new_biases=True, **given)
    assert {edit.module for edit in pruned.plan.edits_of(NewBias)} >= {"second", "last"}
    assert pruned.report.small.params == sum(p.numel() for p in pruned.model.parameters())
    with pytest.raises(MethodError, match="new_biases=True is for repair='compensate', which fits them, and not for"):
        niwaki.prune(space.model, X[:2], niwaki.Budget(params=0.6), repair="norms", new_biases=True, **given)


def test_it_learns_and_is_pruned_again(made: Compensated) -> None:
    small = niwaki.cut(made.model, made.plan)
    small(X).square().mean().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in small.parameters())
    rest = niwaki.search_space(small, X[:2])
    plan = niwaki.choose(rest, niwaki.score(rest, "magnitude"), niwaki.Budget(params=0.6))
    assert niwaki.check(small, plan, X).holds
    smaller = niwaki.cut(small, plan)
    whole = plan_of(smaller)
    assert whole is not None
    torch.testing.assert_close(niwaki.cut(made.model, whole)(X), smaller(X))


def test_an_optimizer_goes_on_with_the_biases(made: Compensated) -> None:
    model = niwaki.compensate(niwaki.search_space(made.model, X[:2]), made.plan, [X]).model  # a copy to change
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    model(X).square().mean().backward()
    optimizer.step()
    niwaki.shrink(model, made.plan, optimizer)
    owned = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(owned) == sorted(id(p) for p in model.parameters()) and model.last.bias is not None
    niwaki.shrink(model, made.plan, optimizer)  # nothing is left to do
    optimizer.zero_grad()
    model(X).square().mean().backward()
    before = model.last.bias.detach().clone()  # type: ignore[operator]
    optimizer.step()
    assert not torch.equal(model.last.bias, before)  # type: ignore[arg-type]


def test_what_makes_no_sense_is_refused(space: niwaki.SearchSpace, made: Compensated) -> None:
    with pytest.raises(MethodError, match="new_biases=1 must be True or False"):
        niwaki.compensate(space, thinned(space), [X], new_biases=1)  # type: ignore[arg-type]
    edit = made.plan.edits_of(NewBias)[0]
    wrong = {
        "'first' a bias, which is no layer without one": replace(edit, module="first"),
        "of other outputs than it keeps": replace(edit, rows=(0, 1, 2, 3)),
        "a bias that is not finite": replace(edit, value=(float("nan"),) * 4),
    }
    for why, other in wrong.items():
        plan = replace(made.plan, edits=tuple(other if one == edit else one for one in made.plan.edits))
        with pytest.raises(PlanError, match=why):
            niwaki.cut(made.model, plan)
    small = niwaki.cut(made.model, made.plan)
    other = replace(edit, value=(1.0,) * 4)
    plan = replace(made.plan, edits=tuple(other if one == edit else one for one in made.plan.edits))
    with pytest.raises(PlanError, match="wants another bias of 'second' than it has got"):
        niwaki.cut(small, plan)
    fewer = [Keep("second.bias", 0, (1, 2)), Keep("second.weight", 0, (1, 2))]
    joined, others = edit.joined(fewer)
    assert list(joined.rows) == [edit.rows[1], edit.rows[2]] and others == fewer[1:]
