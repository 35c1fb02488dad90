"""Weights that are cut by a method's plan are compared with zero: averages and checkpoints are not what it trained."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from every_method import KINDS, SCHEDULE, training
from hypothesis import given, settings
from hypothesis import strategies as st
from small import Small, images
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel
from training import Training, sgd

import niwaki
from niwaki.core.edits import Zeroed
from niwaki.errors import PlanError
from niwaki.surgery.history import plan_of, remember
from niwaki.surgery.nonzero import nonzero
from niwaki.verify import Check


@contextmanager
def silence() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def trained(kind: str = "hesso", net: str = "mlp") -> tuple[Training, nn.Module, niwaki.Plan]:
    """A run at the end of its schedule, its weights from before pruning, and its plan."""
    run = training(kind, net=net)
    run.step(2)
    before = copy.deepcopy(run.model)
    run.step(SCHEDULE.until)
    with silence():
        return run, before, run.method.plan()


def held(run: Training, plan: niwaki.Plan, weights: nn.Module) -> int:
    """How many removed units hold anything in the entries that the method zeroes, counted unit by unit."""
    keep, parameters = run.space.keep_of(plan), dict(weights.named_parameters())
    return sum(
        any(
            bool(parameters[piece.tensor].index_select(piece.dim, torch.from_numpy(piece.index[unit])).any())
            for piece in group.slices
            if piece.parameter and piece.role.zeroed_by_method
        )
        for group in run.space.groups
        for unit in np.flatnonzero(~keep[group.numbers])
    )


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
@pytest.mark.parametrize("kind", ["hesso", "hspg"])
def test_other_weights_than_the_trained_ones_are_told(kind: str, net: str) -> None:
    run, before, plan = trained(kind, net)
    removed = int((~run.space.keep_of(plan)).sum())
    for known in (plan, niwaki.Plan.from_json(plan.to_json())):
        with silence():
            niwaki.cut(run.model, known)
        for share in (0.0, 0.9):  # the checkpoint itself, and an average of both
            average = copy.deepcopy(run.model)
            for ours, theirs in zip(average.parameters(), before.parameters(), strict=True):
                ours.data.lerp_(theirs.data, 1 - share)
            with pytest.warns(UserWarning, match="are not zero in the weights given: up to ") as told:
                niwaki.cut(average, known)
            assert str(told[0].message).startswith(f"{held(run, plan, average)} of the {removed} units that the plan ")
            assert told[0].filename == __file__


@pytest.mark.parametrize("kind", ["hesso", "hspg"])
def test_a_plan_from_before_the_end_is_told_as_one(kind: str) -> None:
    """The weights are those of the method: nobody should look for others."""
    run = training(kind, net="mlp")
    run.step(SCHEDULE.start + 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which tells that it is early
        keep = np.arange(run.space.num_units) % 2 == 0
        plan = run.method.units.plan(keep, dict(run.method.plan().provenance))
    with pytest.warns(UserWarning) as told:
        niwaki.cut(run.model, niwaki.Plan.from_json(plan.to_json()))
    text = str(told[0].message)
    assert f"The plan is of step {run.method.step}, before the end of the schedule of {run.method.name}, which" in text
    assert "Train until method.done is true, and cut by the plan that the method makes then; docs/" in text
    assert "other weights" not in text


def test_a_wrapper_is_told_from_another_network() -> None:
    run, _, plan = trained()
    average = AveragedModel(run.model)
    for use in (niwaki.cut, lambda model, plan: niwaki.check(model, plan, torch.zeros(1))):
        with pytest.raises(
            PlanError, match="this AveragedModel has in its attribute 'module'. Pass that: model.module"
        ):
            use(average, plan)
    with silence():
        niwaki.cut(average.module, plan)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_what_is_counted(data: st.DataObject) -> None:
    """Any units, anywhere in any tensor that computes them: counted one by one, in their groups, with the largest."""
    run, _, plan = _TRAINED
    space, removed = run.space, np.flatnonzero(~run.space.keep_of(plan))
    wrong = data.draw(st.lists(st.sampled_from(removed.tolist()), min_size=1, unique=True))
    weights, values = copy.deepcopy(run.model), {}
    for number, unit in enumerate(wrong):
        group = next(group for group in space.groups if group.first <= unit < group.first + group.units)
        pieces = [piece for piece in group.slices if piece.parameter and piece.role.zeroed_by_method]
        piece = data.draw(st.sampled_from(pieces))
        row = data.draw(st.sampled_from(piece.index[unit - group.first].tolist()))
        entries = dict(weights.named_parameters())[piece.tensor].data.select(piece.dim, row)
        entries.view(-1)[0] = 10.0 + number
        values[unit] = (10.0 + number, piece.tensor)
    groups = len({next(n for n, g in enumerate(space.groups) if g.first <= u < g.first + g.units) for u in wrong})
    largest, tensor = max(values.values())
    with pytest.warns(UserWarning) as told:
        niwaki.cut(weights, plan)
    text = str(told[0].message)
    assert text.startswith(f"{len(wrong)} of the {len(removed)} units that the plan removes, in {groups} of ")
    assert f"not zero in the weights given: up to {largest:.2g} in {tensor!r}" in text


def test_what_round_off_leaves_is_zero() -> None:
    run, before, plan = trained()
    for share, wrong in ((1e-9, False), (1e-4, True)):
        average = copy.deepcopy(run.model)
        for ours, theirs in zip(average.parameters(), before.parameters(), strict=True):
            ours.data.lerp_(theirs.data, share)
        with pytest.warns(UserWarning) if wrong else silence():
            niwaki.cut(average, plan)


def test_not_a_number_is_not_zero() -> None:
    run, _, plan = trained()
    zeroed = plan.edits_of(Zeroed)[0]
    name, dim = zeroed.dims[0]
    dict(run.model.named_parameters())[name].data.select(dim, zeroed.positions[0]).fill_(float("nan"))
    with pytest.warns(UserWarning, match="1 of the .* up to inf in"):
        niwaki.cut(run.model, plan)


class Gated(nn.Module):
    """Zeros do not remain zeros on the way through a sigmoid, and an RMSNorm over the width is repaired."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.RMSNorm(16)
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)
        self.inner, self.head = nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        h = self.norm(x)
        x = x + self.down(self.gate(h).sigmoid() * self.up(h))
        y: Tensor = self.head(self.inner(x).sigmoid())
        return y


NETWORKS: dict[str, Any] = {
    "weight norm": lambda: nn.Sequential(weight_norm(nn.Linear(6, 12)), nn.ReLU(), weight_norm(nn.Linear(12, 3))),
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Sigmoid(), nn.Linear(12, 3)),
    "gated": Gated,
    "tied": lambda: nn.Sequential(nn.Linear(6, 12), shared := nn.Linear(12, 12), nn.ReLU(), shared, nn.Linear(12, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["hesso", "dhspg"])
def test_no_false_alarm(name: str, kind: str) -> None:
    """Directions of weight norms, reading entries and statistics of norms are not zero, and need not be."""
    torch.manual_seed(0)
    net = NETWORKS[name]()
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01, weight_decay=0.1)
    make, options = KINDS[kind]
    x = torch.randn(32, 6)
    space = niwaki.search_space(net, x)
    schedule = niwaki.Schedule(start=2, until=12, periods=3)
    method = make(space, optimizer, niwaki.Budget(params=0.6), schedule, **options)
    for _ in range(14):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    with silence():
        plan = method.plan()
        small = niwaki.cut(net, plan)
        assert method.done and plan.edits_of(Zeroed)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    found = niwaki.check(net.eval(), plan, x)
    assert found.holds and found.zero, found


def test_plans_of_scores_and_weights_without_values_are_not_compared() -> None:
    run, before, plan = trained()
    with silence():
        niwaki.cut(copy.deepcopy(before).to("meta"), plan)
        chosen = niwaki.choose(run.space, niwaki.score(run.space, "random"), niwaki.Budget(units=0.5))
        assert not chosen.edits_of(Zeroed)
        niwaki.cut(before, chosen)
        niwaki.shrink(before, chosen)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.complex64, torch.float8_e4m3fn])
def test_weights_of_any_type(dtype: torch.dtype) -> None:
    run, before, plan = trained()
    zeroed = plan.edits_of(Zeroed)
    assert nonzero({name: value.detach().to(dtype) for name, value in run.model.named_parameters()}, zeroed) is None
    found = nonzero({name: value.detach().to(dtype) for name, value in before.named_parameters()}, zeroed)
    assert found is not None and len(found.units) == held(run, plan, before)


def test_shrinking_in_place_tells_of_the_model_and_of_its_averages() -> None:
    run, before, plan = trained()
    with silence():
        niwaki.shrink(copy.deepcopy(run.model), plan, ema=copy.deepcopy(run.model))
    with pytest.warns(UserWarning, match="are not zero in an averaged copy of the model: up to"):
        niwaki.shrink(run.model, plan, ema=copy.deepcopy(before))
    with pytest.warns(UserWarning, match="are not zero in the weights given: up to"):
        niwaki.shrink(before, plan)


@pytest.mark.parametrize("kind", ["hesso", "hspg"])
def test_a_method_that_shrinks_other_weights_than_its_own_tells(kind: str) -> None:
    """A checkpoint from before pruning, loaded into the model without the optimizer's state."""
    run, before, _ = trained(kind)
    other = copy.deepcopy(run)
    with silence():
        assert other.method.shrink()
    removed = int(run.method.selector.removable().sum())
    run.model.load_state_dict(before.state_dict())
    with pytest.warns(UserWarning, match=rf"of the {removed} units that .* are not zero in the model: up to") as told:
        assert run.method.shrink()
    assert str(told[0].message).endswith("The model has been shrunk all the same.")
    assert told[0].filename == __file__


def test_what_is_left_to_cut_of_a_model_that_has_shrunk() -> None:
    """Units are found under the positions that they have now."""
    torch.manual_seed(0)
    model = Small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    space = niwaki.search_space(model, images())
    method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.4), niwaki.Schedule(start=2, until=14, periods=4))
    for step in range(16):
        optimizer.zero_grad()
        model(images(seed=step)).square().mean().backward()
        optimizer.step()
        if step == 8:
            method.shrink()
            early = copy.deepcopy(model)
            left = ~method.selector.removable()
    plan = method.plan()
    removed = int((left & ~space.keep_of(plan)).sum())
    done = plan_of(model)
    assert done is not None
    remember(early, done)
    with silence():
        niwaki.cut(model, plan)
    with pytest.warns(UserWarning, match=rf"^{removed} of the {removed} units that the plan removes"):
        niwaki.cut(early, plan)


@pytest.mark.parametrize("kind", KINDS)
def test_done(kind: str) -> None:
    run = training(kind)
    seen = []
    for _ in range(SCHEDULE.until + 1):
        run.step()
        seen.append(run.method.done)
    assert seen[-2:] == [True, True] and seen.index(True) + 1 >= (SCHEDULE.start if "spg" in kind else SCHEDULE.until)
    for parameter in run.model.parameters():
        parameter.data.add_(0.1)
    assert not run.method.done
    run.step()
    assert run.method.done


def test_an_average_with_its_units_at_zero_is_the_cut_one() -> None:
    run = training("hesso", net="conv")
    average = AveragedModel(run.model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for _ in range(SCHEDULE.until):
        run.step()
        average.update_parameters(run.model)
    plan = run.method.plan()
    with pytest.warns(UserWarning, match="are not zero"):
        small = niwaki.cut(average.module, plan)
    niwaki.zero_(average, plan)
    x = run.x[0]
    torch.testing.assert_close(average.eval()(x), small.eval()(x))
    for _ in range(2):
        run.step()
        average.update_parameters(run.model)
        with silence():
            niwaki.cut(average.module, plan)
    with pytest.raises(PlanError, match="plan is a str, but must be a niwaki.Plan"):
        niwaki.zero_(average, "plan")  # type: ignore[arg-type]
    before = copy.deepcopy(run.model.state_dict())
    with pytest.raises(PlanError, match="for another network"):
        niwaki.zero_(nn.Linear(3, 3), plan)
    assert all(torch.equal(value, before[name]) for name, value in run.model.state_dict().items())


def test_check_says_both_facts() -> None:
    run, before, plan = trained()
    found = niwaki.check(run.model, plan, run.x[0])
    assert str(found).startswith("Exact: the cut network equals the masked one (max. relative difference ")
    assert str(found).endswith("The removed units were zero.") and found.zero
    found = niwaki.check(before, plan, run.x[0])
    assert found.holds and not found.zero
    for distance, text in ((5.0, "by 500 % of"), (0.05, "by 5 % of"), (float("inf"), "beyond measure: they were not")):
        assert text in str(Check(0.0, 1e-10, True, None, distance))
    assert "NOT EXACT: the cut network differs" in str(Check(0.1, 1e-10, False, "a", 0.0))


def test_a_plan_edited_by_hand_is_refused() -> None:
    _, _, plan = trained()
    text = plan.to_json()
    for change in (lambda z: {**z, "positions": z["positions"][:-1]}, lambda z: {**z, "dims": []}, lambda z: 3):
        data = json.loads(text)
        number = kind_in(data, "zeroed by method")
        data["edits"][number] = change(data["edits"][number])
        with pytest.raises(PlanError, match="is not a niwaki plan"):
            niwaki.Plan.from_json(json.dumps(data))
    data = json.loads(text)
    data["edits"][kind_in(data, "zeroed by method")]["dims"] = [["nothing", 0]]
    with pytest.raises(PlanError, match="calls positions in dimension 0 of 'nothing' zero, and does not remove them"):
        niwaki.cut(Training("mlp", sgd).model, niwaki.Plan.from_json(json.dumps(data)))
    assert all(Zeroed.from_data(edit.to_data()) == edit for edit in plan.edits_of(Zeroed))


def kind_in(data: dict[str, Any], kind: str) -> int:
    """The number of the first edit of a kind."""
    return next(number for number, edit in enumerate(data["edits"]) if edit["edit"] == kind)


_TRAINED = trained(net="conv")
