"""Auto-Train-Once: its stages, its mask, and that what is reported is what is cut."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from ato_run import BUDGET, SCHEDULE, Run, labelled, loss_fn
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from training import adamw, sgd

import niwaki
from niwaki.errors import BudgetError, MethodError, UnknownName
from niwaki.masks import GRUController
from niwaki.methods import Schedule
from niwaki.methods.stages import Stages
from niwaki.selection.budget import Budget

STAGES = Stages.of(SCHEDULE)


def equal(one: Run, other: Run) -> bool:
    mine, theirs = one.parameters(), other.parameters()
    return all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_stages() -> None:
    assert STAGES == Stages(start=3, project=11, freeze=27, fade=39, until=43) and STAGES.every == 1
    long = Stages.of(Schedule(start=100, until=5100))
    assert (long.every, long.controller_steps) == (20, 151)
    assert [step for step in range(1, 200) if long.controls(step)] == [100, 120, 140, 160, 180]
    assert long.progress(100) == 0 and long.progress(long.freeze) == 1
    assert [long.left(step) for step in (4600, 4601, 5100)] == [None, 499 / 500, 0.0]
    short = Stages.of(Schedule(start=100, until=400))  # 180 steps for the controller, 3 for each of its own
    uneven = Stages.of(Schedule(start=100, until=290))  # 114
    for stages, gaps in ((short, {3}), (uneven, {1, 2})):
        taken = [step for step in range(1, 500) if stages.controls(step)]
        assert taken[0] == 100 and taken[-1] == stages.freeze
        assert len(taken) == stages.controller_steps == 61
        assert {later - step for step, later in zip(taken, taken[1:], strict=False)} == gaps
    shortest = Stages.of(Schedule(start=1, until=2, periods=1))
    assert shortest.left(2) == 0.0 and shortest.freeze < shortest.until


@pytest.mark.parametrize("build", [adamw, sgd])
@pytest.mark.parametrize("generator", ["gru", "shared"])
def test_what_is_masked_is_zero_and_is_what_is_cut(build: Any, generator: str) -> None:
    run = Run(build, generator=generator).step(SCHEDULE.until + 3)
    method, plan = run.method, run.method.plan()
    assert method.done and method.progress.phase == "done"
    assert run.space.cost(plan).macs <= 0.5 * run.space.cost().macs
    keep = torch.from_numpy(run.space.keep_of(plan)).float()
    small = niwaki.cut(run.model, plan)
    x, y = labelled(7, 64)
    run.model.eval(), small.eval()
    masked = method.selector.controller.training.gates.value(keep, lambda model: model(x))
    torch.testing.assert_close(masked, run.model(x))
    torch.testing.assert_close(small(x), run.model(x))
    assert plan.provenance["method"] == "ato" and plan.provenance["generator"] == generator


def test_before_units_are_projected_the_training_is_the_bare_one() -> None:
    """To the bit, random numbers of dropout and statistics of norms included."""
    run, bare = Run().step(STAGES.project), Run(budget=None).step(STAGES.project)
    assert run.method.selector.controller.taken == STAGES.project - STAGES.start + 1
    assert equal(run, bare)
    run.step(), bare.step()
    assert not equal(run, bare)


def test_units_that_are_not_masked_take_the_optimizers_step() -> None:
    run = Run().step(STAGES.freeze + 1)
    other = copy.deepcopy(run.model)
    optimizer = adamw(other.parameters())
    state = run.optimizer.state_dict()
    optimizer.load_state_dict({name: copy.deepcopy(state[name]) for name in ("state", "param_groups")})
    torch.manual_seed(3)
    run.step()
    torch.manual_seed(3)
    optimizer.zero_grad()
    loss_fn(other, labelled(run.done - 1)).backward()
    optimizer.step()
    keep = torch.from_numpy(~run.method.selector.mask)[:24]
    assert 0 < int(keep.sum()) < 24
    assert torch.equal(run.model[0].weight[keep], other[0].weight[keep])
    assert not torch.equal(run.model[0].weight[~keep], other[0].weight[~keep])


@pytest.mark.parametrize("build", [adamw, sgd], ids=["adamw", "sgd"])
def test_units_reach_zero_before_they_fade(build: Any) -> None:
    """With default arguments, under an optimizer that moves every weight by its rate whatever the gradient is, and
    under one that follows the gradient."""
    schedule = Schedule(start=10, until=210)
    run = Run(build, schedule=schedule)
    run.step(Stages.of(schedule).fade)
    assert run.method.progress.phase == "fading"
    now = run.method.progress
    assert now.zero >= 0.9 * now.marked > 0
    norms = run.model[0].weight.norm(dim=1)[torch.from_numpy(run.method.selector.mask)[:24]]
    assert (norms == 0).float().mean() >= 0.9


@pytest.mark.parametrize("options", [{}, {"projection": "half-space"}, {"penalty": 1.0}], ids=str)
@pytest.mark.parametrize("build", [adamw, sgd], ids=["adamw", "sgd"])
def test_it_resumes_to_the_same_bits_in_each_phase(build: Any, options: dict[str, Any]) -> None:
    whole = Run(build, **options).step(SCHEDULE.until + 2)
    for done in (1, 4, STAGES.project, 20, STAGES.freeze, 31, STAGES.fade, 41, SCHEDULE.until, SCHEDULE.until + 1):
        first = Run(build, **options).step(done)
        model, optimizer = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.optimizer.state_dict())
        random = torch.get_rng_state()
        again = Run(build, **options)
        again.model.load_state_dict(model)
        again.optimizer.load_state_dict(optimizer)
        again.done = done
        torch.set_rng_state(random)
        again.step(SCHEDULE.until + 2 - done)
        assert equal(again, whole), f"resumed after {done}"
        assert again.method.plan().kept == whole.method.plan().kept
        assert again.method.learnt_cost == whole.method.learnt_cost


def test_the_plain_loop_does_the_same() -> None:
    fast = Run(dtype=torch.float64).step(SCHEDULE.until)
    plain = Run(dtype=torch.float64, vectorised=False).step(SCHEDULE.until)
    assert (fast.method.selector.mask == plain.method.selector.mask).all()
    for mine, other in zip(fast.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=1e-7, rtol=1e-5)


def test_the_mask_at_the_freeze_is_a_choice_under_the_budget() -> None:
    """It holds from then on, with widths rounded; the controller's own mask is reported, and is close."""
    budget = Budget(macs=0.4, round_to=8)
    run = Run(widths=(192, 160), budget=budget, schedule=Schedule(start=3, until=303), generator="gru")
    run.step(Stages.of(run.method.schedule).freeze)
    mask = run.method.selector.mask.copy()
    assert run.space.cost_of(~mask).macs <= 0.4 * run.space.cost().macs
    assert [int((~mask[group.numbers]).sum()) % 8 for group in run.space.groups] == [0, 0]
    assert run.method.learnt_cost is not None
    assert abs(run.method.learnt_cost["macs"] - 0.4) <= 0.005
    run.step(5)
    assert (run.method.selector.mask == mask).all()
    assert "would itself keep" in repr(run.method)


def test_the_mask_at_the_freeze_is_that_of_the_controller_where_it_meets_the_budget() -> None:
    """Cheap units that are masked do not drive out those that cost more: the likeliest mask is chosen, not the one with
    the largest sum of probabilities."""
    run = Run(widths=(40, 200), budget=Budget(macs=0.4), schedule=Schedule(start=3, until=203))
    run.step(10)
    values = run.method.selector.controller.training.generator.get_parameter("values")
    with torch.no_grad():  # one of the first group costs as much as three of the second
        values[:40] = torch.where(torch.arange(40) < 30, -2.6, -6.0)
        values[40:] = torch.where(torch.arange(200) < 100, -2.5, -3.4)
    keep = run.method.selector.controller.keeps()
    assert 0.39 < run.space.cost_of(keep).macs / run.space.cost().macs <= 0.4
    chosen = run.method.selector._chosen()
    assert run.space.cost_of(chosen).macs <= 0.4 * run.space.cost().macs
    assert bool((chosen | ~keep).all()), "what the controller keeps stays"


def test_norms_take_the_statistics_of_the_controllers_batch() -> None:
    """And what they keep does not change, nor does the mode of any module; dropout is off."""
    run = Run(batches=None).step(STAGES.start - 1)
    norm, seen = run.model[1], {}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        seen.update(norm=model[1].training, dropout=model[3].training, out=model[:2](batch[0]).detach())
        return loss_fn(model, batch)

    run.method.selector.controller._loss_fn = loss
    with torch.no_grad():
        norm.running_mean.fill_(100.0)
    run.model.train()
    run.method.controller_step(run.held_out[0])
    assert (seen["norm"], seen["dropout"]) == (True, False) and all(part.training for part in run.model)
    torch.testing.assert_close(seen["out"].mean(0), norm.bias.detach(), atol=1e-5, rtol=0)
    assert bool((norm.running_mean == 100).all()) and int(norm.num_batches_tracked) == STAGES.start - 1


def test_several_limits_hold() -> None:
    run = Run(budget=Budget(macs=0.6, params=0.4, units=0.9)).step(SCHEDULE.until)
    cost, dense = run.space.cost(run.method.plan()), run.space.cost()
    assert cost.macs <= 0.6 * dense.macs and cost.params <= 0.4 * dense.params
    assert set(run.method.learnt_cost) == {"macs", "params", "units"}


def test_the_controller_can_be_stepped_by_the_loop() -> None:
    """With the same batches at the same steps it is the same run."""
    given, own = Run().step(SCHEDULE.until), Run(batches=None)
    for step in range(1, SCHEDULE.until + 1):
        if STAGES.controls(step):
            own.method.controller_step(own.held_out[(step - STAGES.start) % 3])
        own.step()
    assert equal(own, given)
    with pytest.raises(
        MethodError, match=r"^The mask of ATO was fixed after step 27, 60 % of the way through its sched"
    ):
        own.method.controller_step(own.held_out[0])
    with pytest.raises(MethodError, match=r"^ATO was given batches, and takes the steps of its controller by itself\."):
        given.method.controller_step(own.held_out[0])


def test_a_loop_that_steps_the_controller_too_late_is_told_so() -> None:
    run = Run(batches=None).step(STAGES.freeze - 3)
    with pytest.raises(
        MethodError,
        match=r"^The controller of ATO takes its first step before step 25, but in the last quarter of its time, which "
        r"ends with step 27, only the budget counts: nothing would be learnt\. Call controller_step from step 3 on\.$",
    ):
        run.method.controller_step(run.held_out[0])


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_skipped_on_overflow_is_skipped(fused: bool) -> None:
    """The controller has taken its step before such a step already, and does not take it again."""
    run = Run(lambda parameters: adamw(parameters, fused=fused))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    skipped = (STAGES.start - 1, STAGES.start + 2, STAGES.project + 3, STAGES.fade + 4)
    for attempt in range(SCHEDULE.until + len(skipped)):
        run.optimizer.zero_grad()
        scaler.scale(loss_fn(run.model, run.batch(attempt))).backward()
        if attempt in skipped:
            run.model[0].weight.grad[0, 0] = float("inf")
        before, step = run.parameters(), run.method.step
        scaler.step(run.optimizer)
        scaler.update()
        assert run.method.step == step + (attempt not in skipped)
        if attempt in skipped:
            assert torch.equal(run.model[0].weight, before["0.weight"])
    assert run.method.done and run.method.progress.macs <= 0.5
    assert run.method.selector.controller.taken == STAGES.controller_steps


def test_a_shuffled_loader_is_the_same_after_a_resume() -> None:
    x, y = labelled(5, 40)

    def loader() -> DataLoader[Any]:
        return DataLoader(TensorDataset(x, y), batch_size=8, shuffle=True)

    whole = Run(batches=loader()).step(SCHEDULE.until)
    for done in (7, 13):
        first = Run(batches=loader()).step(done)
        random = torch.get_rng_state()
        again = Run(batches=loader())
        again.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
        again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
        again.done = done
        torch.set_rng_state(random)
        assert equal(again.step(SCHEDULE.until - done), whole)


def test_the_model_shrinks_at_the_end() -> None:
    dense = Run(dropout=0.0, dtype=torch.float64).step(SCHEDULE.until + 12)
    run = Run(dropout=0.0, dtype=torch.float64, shrink=True).step(SCHEDULE.until + 12)
    assert run.model[0].out_features < 24
    x, _ = run.batch(3)
    torch.testing.assert_close(run.model.eval()(x), niwaki.cut(dense.model, dense.method.plan()).eval()(x))


def test_a_plan_before_the_end_says_so() -> None:
    run = Run().step(20)
    with pytest.warns(
        UserWarning, match="ATO has not reached the end of its schedule, step 43, so this plan takes unit"
    ):
        run.method.plan()


def test_phases() -> None:
    run, seen = Run(), []
    for _ in range(SCHEDULE.until + 1):
        phase = run.method.progress.phase
        if not seen or seen[-1][1] != phase:
            seen.append((run.done, phase))
        run.step()
    assert seen == [(0, "waiting"), (2, "learning"), (11, "projecting"), (39, "fading"), (43, "done")]


class Same:
    """Batches that are there once."""

    def __init__(self, passes: int) -> None:
        self.passes = passes

    def __iter__(self) -> Any:
        self.passes -= 1
        return iter([labelled(1)] if self.passes >= 0 else [])


def nan_loss(model: nn.Module, batch: Any) -> Tensor:
    return loss_fn(model, batch) * math.nan


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"batches": 3}, MethodError, "batches=3 cannot be iterated: 'int' object is not iterable. Pass what can be"),
        ({"batches": iter([1])}, MethodError, "batches is a list_iterator, which is at its end after one pass and can"),
        (
            {"batches": []},
            MethodError,
            "batches gave no batch in pass 2. Pass what can be iterated again and again, suc",
        ),
        ({"loss_fn": 3}, MethodError, "loss_fn=3 is not a function. It is given the model and one batch, and returns"),
        (
            {"loss_fn": lambda model, batch: 1.0},
            MethodError,
            "loss_fn must return the scalar loss of a batch, but retur",
        ),
        (
            {"loss_fn": nan_loss},
            MethodError,
            "The loss of a batch under a mask is nan, so no mask can be learnt from it",
        ),
        (
            {"loss_fn": lambda model, batch: model[6].bias.sum()},
            MethodError,
            "The loss that loss_fn returned does not depend on any unit of the search space, so no mask can be learnt",
        ),
        ({"generator": "lstm"}, UnknownName, "There is no mask generator 'lstm'. Registered are: gru, independent,"),
        ({"penalty": -1}, MethodError, "penalty=-1 must be a finite number, 0 or more: it weighs the norms of the mas"),
        ({"projection": "hard"}, MethodError, "projection='hard' is not a projection. Choose 'prox' or 'half-space'."),
        ({"budget_weight": "4"}, MethodError, "budget_weight='4' must be a finite number, 0 or more: it weighs the bu"),
        ({"budget": Budget(macs=0.001)}, BudgetError, "The budget macs <= 1 (0.1% of "),
        (
            {"schedule": Schedule(1, 90, ramp="cubic")},
            MethodError,
            "The schedule has the ramp 'cubic', but ATO does not",
        ),
        (
            {"schedule": Schedule(1, 90, fade="angle-safe")},
            MethodError,
            "The schedule has the fade 'angle-safe', but A",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_changes(options: dict[str, Any], kind: Any, says: str) -> None:
    bare = Run(budget=None)
    random = torch.get_rng_state()
    given = {"loss_fn": loss_fn, "batches": bare.held_out, "budget": BUDGET, "schedule": SCHEDULE} | options
    before, training = bare.parameters(), bare.model.training
    with pytest.raises(kind, match=f"^{re.escape(says)}"):
        niwaki.ATO(bare.space, bare.optimizer, **given)
    assert all(torch.equal(value, before[name]) for name, value in bare.parameters().items())
    assert torch.equal(torch.get_rng_state(), random) and bare.model.training == training
    niwaki.HESSO(bare.space, bare.optimizer, BUDGET, SCHEDULE)  # the optimizer has no method yet


def test_a_generator_of_another_space_is_refused() -> None:
    other = Run(widths=(10, 10), budget=None)
    with pytest.raises(
        MethodError, match="The mask generator has gates of 20 units, and the search space has 40. Build"
    ):
        Run(generator=GRUController(other.space))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batches": Same(2)}, "batches gave no batch in pass 2. Pass what can be iterated again and again, such as a"),
        ({"batches": None}, "ATO was given no batches, and controller_step(batch) has not been called before step 27"),
    ],
)
def test_what_goes_wrong_in_a_step_leaves_everything_as_it_was(options: dict[str, Any], says: str) -> None:
    """The optimizer has not stepped, and another attempt fails alike."""
    run = Run(**options)
    with pytest.raises(MethodError, match=f"^{re.escape(says)}"):
        run.step(SCHEDULE.until)
    before, random = run.parameters(), torch.get_rng_state()
    done, gradients = run.method.step, [p.grad.clone() for p in run.model.parameters()]
    with pytest.raises(MethodError, match=f"^{re.escape(says)}"):
        run.optimizer.step()
    assert run.method.step == done and torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in run.parameters().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(run.model.parameters(), gradients, strict=True))


def test_a_checkpoint_of_another_generator_is_refused() -> None:
    saved = copy.deepcopy(Run(generator="gru").step(5).optimizer.state_dict())
    run = Run(generator="transformer")
    with pytest.raises(
        MethodError, match="The checkpoint was made by ato with generator = 'gru', but here it is 'transf"
    ):
        run.optimizer.load_state_dict(saved)


@pytest.mark.parametrize("name", ["mask", "controller", "stage", "pace", "held_out"])
def test_a_damaged_checkpoint_is_refused(name: str) -> None:
    run = Run().step(20)
    saved = copy.deepcopy(run.optimizer.state_dict())
    saved["niwaki"]["state"][name] = {"passes": -1, "place": 0} if name == "held_out" else torch.zeros(3)
    with pytest.raises(MethodError, match="^The state of ato in the optimizer's checkpoint is damaged: "):
        run.optimizer.load_state_dict(saved)


class Gram(nn.Module):
    """The hidden units are read by a linear layer, and by their products with each other."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.other = nn.Linear(5, 8), nn.Linear(8, 3), nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(h) + (h * self.other(x)).sum(-1, keepdim=True)


def test_gates_that_would_not_be_what_is_cut_are_refused() -> None:
    """A weight reads the units, so that they have gates, but something else does, too."""
    torch.manual_seed(0)
    model = Gram()
    space = niwaki.search_space(model, torch.randn(2, 5))
    assert space.num_units
    optimizer = adamw(model.parameters())
    batches = [torch.randn(6, 5)]
    with pytest.raises(
        MethodError, match=r"^The group '.*' cannot have gates: with half of its units multiplied by zero"
    ):
        niwaki.ATO(
            space, optimizer, BUDGET, SCHEDULE, loss_fn=lambda model, x: model(x).square().mean(), batches=batches
        )


def test_no_group_is_emptied_where_that_can_be_helped() -> None:
    """A group whose units seem worthless keeps half of an even share; under a budget that is too tight for it, less."""
    for budget, fewest in ((Budget(macs=0.5), 5), (Budget(macs=0.03), 1)):
        run = Run(budget=budget, schedule=Schedule(start=3, until=103)).step(50)
        with torch.no_grad():
            run.method.selector.controller.training.generator.get_parameter("values")[24:].sub_(50)
        run.step(53)
        plan = run.method.plan()
        assert run.space.cost(plan).macs <= budget.limits["macs"] * run.space.cost().macs
        assert len(plan.kept[run.space.groups[1].name]) >= fewest


def test_the_network_learns_beside_its_mask() -> None:
    run = Run(schedule=Schedule(start=30, until=230), generator="gru").step(230)
    x, y = labelled(9999, 512)
    with torch.no_grad():
        assert float((run.model.eval()(x).argmax(1) == y).float().mean()) >= 0.85
