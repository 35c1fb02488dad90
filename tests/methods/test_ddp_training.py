"""Latents that learn beside the weights: scales that go into the weights at the freeze, and what is left at the end."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from ato_run import BUDGET, SCHEDULE, labelled, loss_fn
from torch import nn
from training import adamw, sgd

import niwaki
from niwaki.errors import MethodError, PlanError
from niwaki.masks.first_call import mean_square
from niwaki.methods.stages import Stages
from niwaki.surgery.zero import zeroed

STAGES = Stages.of(SCHEDULE)
X, Y = labelled(7, 64)


class Job:
    """A perceptron on batches that follow from the number of the step."""

    def __init__(self, build: Any = adamw, dtype: torch.dtype = torch.float64, **options: Any) -> None:
        torch.manual_seed(0)
        self.dtype, self.done = dtype, 0
        self.model = nn.Sequential(
            nn.Linear(8, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 2)
        ).to(dtype)
        self.space = niwaki.search_space(self.model, torch.randn(2, 8, dtype=dtype))
        self.optimizer = build(self.model.parameters())
        self.method = niwaki.DDPTraining(self.space, self.optimizer, BUDGET, SCHEDULE, **options)

    def backward(self) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        x, y = labelled(self.done)
        with self.method.masked() as model:
            loss_fn(model, (x.to(self.dtype), y)).backward()

    def until(self, step: int) -> Job:
        while self.done < step:
            self.backward()
            self.optimizer.step()
            self.done += 1
        return self

    def outputs(self, model: nn.Module | None = None) -> torch.Tensor:
        with torch.no_grad():
            found: torch.Tensor = (self.model if model is None else model).eval()(X.to(self.dtype))
        return found

    def masked(self) -> torch.Tensor:
        with self.method.masked():
            return self.outputs()

    @property
    def mask(self) -> Any:
        return self.method.selector.mask  # type: ignore[attr-defined]


@pytest.mark.parametrize("build", [adamw, sgd])
def test_at_the_end_masked_as_it_is_and_cut_compute_the_same(build: Any) -> None:
    job = Job(build).until(SCHEDULE.until + 2)
    assert job.method.done and job.method.progress.phase == "done"
    plan, whole = job.method.plan(), job.outputs()
    for other in (job.masked(), job.outputs(zeroed(job.model, plan)), job.outputs(niwaki.cut(job.model, plan))):
        torch.testing.assert_close(other, whole, rtol=1e-10, atol=1e-10)
    assert 0.45 * job.space.cost().macs <= job.space.cost(plan).macs <= 0.5 * job.space.cost().macs
    assert plan.provenance["method"] == "ddp" and plan.provenance["generator"] == "latents"


def test_scales_are_folded_at_the_freeze_and_the_network_computes_the_same() -> None:
    """But for the units that leave then; and the optimizer's averages follow."""
    job = Job().until(STAGES.freeze - 1)
    job.backward()
    job.method.before_step(STAGES.freeze)  # as the optimizer's step does
    source = job.method.selector.controller  # type: ignore[attr-defined]
    gates, scales = source.training.gates, source.training.gate_values().clone()
    assert not job.mask.any() and float((scales - 1).abs().max()) > 0.05
    weight = job.model[5].weight
    moment = job.optimizer.state[weight]["exp_avg"].clone()
    x = X.double()
    job.model.eval()
    job.method.selector.choose(STAGES.freeze)
    keep = torch.from_numpy(~job.mask)
    assert not keep.all() and source.training.frozen
    scales = source.training.gate_values()
    torch.testing.assert_close(
        job.optimizer.state[weight]["exp_avg"][:, keep[24:]], (moment / scales[24:])[:, keep[24:]]
    )
    again = Job().until(STAGES.freeze - 1)
    again.backward()  # which moves statistics of norms
    again.model.eval()
    with torch.no_grad():
        under = again.method.selector.controller.training.gates.value(scales, lambda model: model(x))  # type: ignore[attr-defined]
    torch.testing.assert_close(job.masked(), under, rtol=1e-12, atol=1e-12)
    assert gates is source.training.gates


def test_no_unit_is_held_at_zero_before_the_freeze_and_before_the_start_nothing_happens() -> None:
    job = Job().until(SCHEDULE.start - 1)
    torch.testing.assert_close(job.masked(), job.outputs(), rtol=0, atol=0)
    job.until(STAGES.freeze - 1)
    assert job.method.progress.marked == 0
    assert float((job.masked() - job.outputs()).abs().max()) > 1e-3
    job.until(STAGES.freeze)
    assert job.method.progress.marked > 0


@pytest.mark.parametrize("stop", [10, STAGES.freeze, 40])
def test_it_resumes_to_the_same_bits(stop: int) -> None:
    whole, first, again = Job().until(46), Job().until(stop), Job()
    again.model.load_state_dict(copy.deepcopy(first.model.state_dict()))
    again.optimizer.load_state_dict(copy.deepcopy(first.optimizer.state_dict()))
    again.done = stop
    again.until(46)
    for mine, other in zip(again.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(mine, other)


def test_a_step_from_other_gradients_is_refused_and_leaves_everything_as_it_was() -> None:
    job = Job().until(9)
    before, steps = copy.deepcopy(job.model.state_dict()), job.method.step
    job.optimizer.zero_grad()
    x, y = labelled(3)
    loss_fn(job.model, (x.double(), y)).backward()
    with pytest.raises(
        MethodError, match="^DDP learns from gradients that are computed under its scales, and there are"
    ):
        job.optimizer.step()
    assert job.method.step == steps
    learnt = {name for name, value in job.model.state_dict().items() if not torch.equal(value, before[name])}
    assert not any("running" not in name and "num_batches" not in name for name in learnt)
    job.until(11)


def test_a_scaled_loss_teaches_the_same() -> None:
    """A gradient scaler multiplies all gradients, and a step that it skips moves no latent."""
    jobs = [Job(), Job()]
    for factor, job in zip((1.0, 1024.0), jobs, strict=True):
        for _ in range(12):
            job.backward()
            leaf = job.method.selector.controller._leaf  # type: ignore[attr-defined]
            if leaf is not None:
                leaf.grad.mul_(factor)
            job.optimizer.step()
            job.done += 1
    latents = [job.method.selector.controller.training.latents.values for job in jobs]  # type: ignore[attr-defined]
    torch.testing.assert_close(*latents, rtol=1e-3, atol=1e-3)
    jobs[0].backward()
    jobs[0].method.selector.controller._leaf.grad.fill_(torch.inf)  # type: ignore[attr-defined]
    kept = latents[0].clone()
    jobs[0].optimizer.step()
    assert torch.equal(latents[0], kept)


def test_the_model_shrinks_at_the_end() -> None:
    job = Job(shrink=True).until(SCHEDULE.until + 12)
    assert not job.method.units.live.here.all()
    assert torch.equal(job.masked(), job.outputs())


@pytest.mark.parametrize("stop", [10, STAGES.freeze - 1, STAGES.freeze + 2])
def test_a_step_inside_of_the_block_is_refused(stop: int) -> None:
    """There the model holds products, into which scales would be folded and lost."""
    job = Job().until(stop)
    before = copy.deepcopy(job.model.state_dict())
    with (
        pytest.raises(MethodError, match=r"^DDP takes a step inside of `with method.masked\(\):`, where the model hol"),
        job.method.masked(),
    ):
        job.optimizer.step()
    assert job.method.step == stop
    assert all(torch.equal(value, before[name]) for name, value in job.model.state_dict().items())
    job.until(stop + 2)


class Summed(nn.Module):
    """What is no layer reads the units, too: they stay there when the weights that read them are multiplied."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.dropout, self.head = nn.Linear(8, 16), nn.Dropout(0.5), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> dict[str, torch.Tensor]:
        x = self.dropout(self.first(x).relu())
        return {"logits": self.head(x) + scale * x.sum(1, keepdim=True)}


def test_a_reader_that_is_no_layer_is_refused_at_the_end_of_the_first_block() -> None:
    """Before any step, as the mask would look at other units than the cut; and nothing of it is left."""
    torch.manual_seed(0)
    model = Summed()
    optimizer = sgd(model.parameters())
    method = niwaki.DDPTraining(niwaki.search_space(model, X[:2]), optimizer, BUDGET, SCHEDULE)
    with method.masked():  # in which the model is not called
        pass
    before, draws = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with (
        pytest.raises(
            MethodError,
            match=r"^The group 'first' cannot have gates: with half of its units multiplied by zero where they are "
            r"read the mean square of what the model returns is [\d.]+, and with these units at zero it is [\d.]+. "
            r"Something else reads them. Pin .* If the model, in eval mode, draws random numbers from a generator",
        ),
        method.masked(),
    ):
        model.eval()(X, scale=0.5)
        model.train()
    assert method.step == 0 and torch.equal(torch.get_rng_state(), draws)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_pre_hooks for module in model.modules())


def test_the_check_is_taken_once_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs on the call of the first block, in the precision of that call, and leaves gradients and statistics."""
    seen: list[torch.dtype] = []

    def spy(output: torch.Tensor) -> torch.Tensor:
        seen.append(output.dtype)
        return mean_square(output)

    monkeypatch.setattr("niwaki.methods.trained_latents.mean_square", spy)
    jobs = [Job(dtype=torch.float32), Job(dtype=torch.float32)]
    jobs[1].method.selector.controller._checked = True  # type: ignore[attr-defined]
    for job in jobs:
        with torch.autocast("cpu", torch.bfloat16):
            job.backward()
    assert seen == 2 * [torch.bfloat16]
    for mine, other in zip(*(job.model.state_dict().values() for job in jobs), strict=True):
        assert torch.equal(mine, other)
    for one, same in zip(*(job.model.parameters() for job in jobs), strict=True):
        assert one.grad is not None and same.grad is not None and torch.equal(one.grad, same.grad)
    jobs[0].until(3)
    assert len(seen) == 2


def test_units_that_leave_are_shortened_by_equal_pieces() -> None:
    job = Job(build=lambda parameters: torch.optim.SGD(parameters, lr=0.05)).until(STAGES.freeze)
    lengths: list[torch.Tensor] = []
    for _ in range(3):
        lengths.append(job.model[3].weight.detach().norm(dim=1)[job.mask[24:]])
        job.until(job.done + 1)
    pieces = [one - after for one, after in zip(lengths, lengths[1:], strict=False)]
    assert len(pieces[0]) and float(pieces[0].min()) > 0
    assert bool((lengths[1] > 0.3 * lengths[0]).all())
    torch.testing.assert_close(pieces[1], pieces[0], rtol=1e-2, atol=0)


def test_a_state_that_was_taken_does_not_move_on() -> None:
    job = Job().until(10)
    state = job.optimizer.state_dict()["niwaki"]["state"]
    before = copy.deepcopy(state["latents"])
    job.until(13)
    for name in ("exp_avg", "exp_avg_sq"):
        assert torch.equal(state["latents"]["optimizer"]["state"][0][name], before["optimizer"]["state"][0][name])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_that_were_zeroed_teach_the_latents_nothing(set_to_none: bool) -> None:
    """As for a batch that is left out; but the gradients of several backward passes add up."""
    jobs = [Job().until(8) for _ in range(3)]
    x, y = labelled(8)
    for number, job in enumerate(jobs):
        job.optimizer.zero_grad()
        for _ in range(number):
            with job.method.masked() as model:
                loss_fn(model.eval(), (x.double(), y)).backward()
            if number == 1:
                job.optimizer.zero_grad(set_to_none)
        with job.method.masked() as model:
            loss_fn(model.eval(), (x.double(), y)).backward()
    plain, zeroed_before, summed = (job.method.selector.controller._leaf.grad for job in jobs)  # type: ignore[attr-defined]
    assert torch.equal(zeroed_before, plain)
    torch.testing.assert_close(summed, 3 * plain)


@pytest.mark.parametrize("policy", [True, False])
def test_averages_of_weights_follow_the_scales(policy: bool) -> None:
    """At the freeze alone, and once; what they were before is what the scales were learnt for."""
    torch.manual_seed(0)
    job = Job()
    average = torch.optim.swa_utils.AveragedModel(job.model)
    job.method.detach()
    ema = {"shrink": niwaki.ShrinkPolicy(ema=[average])} if policy else {"ema": average}
    job.method = niwaki.DDPTraining(job.space, job.optimizer, BUDGET, SCHEDULE, **ema)
    job.until(STAGES.freeze - 1)
    average.update_parameters(job.model)
    before = copy.deepcopy(average.module.state_dict())
    job.until(STAGES.freeze)
    source = job.method.selector.controller  # type: ignore[attr-defined]
    scales = source.training.gate_values()
    scales = torch.where(scales > 0, scales, 1.0)
    after = average.module.state_dict()
    factors: dict[str, torch.Tensor] = {}
    for name, dim, factor in source.training.gates.factors(scales):
        assert dim == 1 and name not in factors
        factors[name] = factor
    assert set(factors) == {"3.weight", "5.weight"} and float((factors["5.weight"] - 1).abs().max()) > 0.05
    for name, value in after.items():
        torch.testing.assert_close(value, before[name] * factors.get(name, 1.0), check_dtype=False)
    with pytest.raises(PlanError, match=r"^The averaged copy \(Linear\) has not the tensors of the model"):
        niwaki.DDPTraining(job.space, sgd(job.model.parameters()), BUDGET, SCHEDULE, ema=nn.Linear(2, 2))


def test_who_lets_go_before_the_scales_are_in_the_weights_is_warned() -> None:
    job = Job().until(9)
    with pytest.warns(UserWarning, match="^DDP lets go of the model before its mask is fixed. The weights have been"):
        job.method.detach()
    late = Job().until(STAGES.freeze)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        late.method.detach()


class Noisy(nn.Module):
    """Adds noise in eval mode, too, as a diffusion model does."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = torch.relu(self.b(torch.relu(self.a(x))))
        result: torch.Tensor = self.c(hidden * (1 + 0.3 * torch.randn_like(hidden)))
        return result


def test_a_network_that_draws_random_numbers_is_trained_and_goes_on_drawing_its_own() -> None:
    model = Noisy()
    space = niwaki.search_space(model, torch.randn(2, 8))
    method = niwaki.DDPTraining(space, sgd(model.parameters()), BUDGET, SCHEDULE)
    torch.manual_seed(3)
    with method.masked():
        loss_fn(model, labelled(0)).backward()
    after = torch.rand(1)
    torch.manual_seed(3)
    loss_fn(model, labelled(0))
    assert after == torch.rand(1)


def test_a_model_that_is_never_called_is_trained_with_a_warning_that_nothing_was_checked() -> None:
    job = Job()
    job.model.forward, run = None, job.model.forward  # type: ignore[assignment,method-assign]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(SCHEDULE.start + 2):
            job.optimizer.zero_grad()
            with job.method.masked():
                run(labelled(step)[0].double()).square().mean().backward()
            job.optimizer.step()
    (said,) = (str(one.message) for one in caught)
    assert said.startswith("DDP gets gradients, but no call of the model has been seen inside of")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Job().until(SCHEDULE.start + 2)
