"""What is known to bite when parameters change under a training loop, and every refusal."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
import zoo
from torch import Tensor, nn
from torch.testing._internal.two_tensor import TwoTensor
from torch.utils.checkpoint import checkpoint

import niwaki
from niwaki.core.edits import Rescale
from niwaki.errors import PlanError, ShrinkError
from niwaki.surgery.optimizer_state import _LAYOUTS
from niwaki.testing.models import random_plan, randomised


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3))


def batch(seed: int = 0) -> Tensor:
    return torch.randn(8, 6, generator=torch.Generator().manual_seed(seed))


def half(model: nn.Module, share: float = 0.5) -> niwaki.Plan:
    space = niwaki.search_space(model, batch())
    return niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=share))


def picture(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """All that an error must leave as it was."""
    found: dict[str, Any] = {name: value.tolist() for name, value in model.state_dict().items()}
    found |= {f"grad {n}": None if p.grad is None else p.grad.tolist() for n, p in model.named_parameters()}
    found["modules"] = str(model)
    if optimizer is not None:
        found["state"] = str(optimizer.state_dict())
    return found


def test_the_ordinary_loop_keeps_its_last_loss() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    plan = half(model)
    losses = []
    for number in range(4):
        optimizer.zero_grad()
        loss = model(batch(number)).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss)  # all graphs stay alive
        if number == 1:
            niwaki.shrink(model, plan, optimizer)
    assert [tuple(p.shape) for p in model.parameters()] == [
        tuple(p.shape) for p in niwaki.cut(network(), plan).parameters()
    ]


def test_a_graph_from_before_is_refused() -> None:
    model = network()
    loss = model(batch()).square().mean()
    niwaki.shrink(model, half(model))
    with pytest.raises(ShrinkError, match="recorded before the network was shrunk, and its gradients have"):
        loss.backward()


def test_hooks_on_parameters_go_on() -> None:
    model = network()
    plan, seen = half(model), []
    model[0].weight.register_hook(lambda gradient: seen.append(tuple(gradient.shape)))
    model[0].weight.register_post_accumulate_grad_hook(lambda p: seen.append(tuple(p.grad.shape)))
    keep = model(batch()).sum()  # alive
    niwaki.shrink(model, plan)
    model(batch()).sum().backward()
    assert seen == [tuple(model[0].weight.shape)] * 2 and keep is not None


def test_gradients_in_accumulation_are_cut() -> None:
    model = network()
    plan = half(model)
    model(batch(0)).sum().backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    niwaki.shrink(model, plan)
    for name, parameter in model.named_parameters():
        wanted = expected[name]
        assert wanted is not None and parameter.grad is not None
        for dim, stays in plan.tensors.get(name, {}).items():
            wanted = wanted.index_select(dim, torch.tensor(stays))
        assert torch.equal(parameter.grad, wanted)
    model(batch(1)).sum().backward()


def test_checkpointed_loops_go_on() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    plan = half(model)
    for number in range(3):
        optimizer.zero_grad()
        loss = checkpoint(model, batch(number), use_reentrant=False).square().mean()
        loss.backward()
        optimizer.step()
        if number == 1:
            niwaki.shrink(model, plan, optimizer)


def test_a_compiled_model_compiles_once_more() -> None:
    compiled = 0

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    model = network()
    plan = half(model)
    wrapped = torch.compile(model, backend=backend)
    for number in range(6):
        wrapped(batch(number)).sum().backward()
        if number == 2:
            before = compiled
            niwaki.shrink(wrapped, plan)
    assert compiled == before + 1
    assert wrapped(batch()).shape == (8, 3) and torch.equal(wrapped(batch()), model(batch()))


def test_a_scaler_that_skips_steps() -> None:
    """The fused optimizer is called although its step is skipped."""
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    scaler, plan = torch.amp.GradScaler("cpu"), half(model)
    for number in range(4):
        optimizer.zero_grad()
        loss = model(batch(number)).square().mean() * (float("inf") if number == 1 else 1.0)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        if number == 1:
            niwaki.shrink(model, plan, optimizer)
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())


def test_averaged_copies_follow() -> None:
    model = network()
    average, plain = torch.optim.swa_utils.AveragedModel(model), copy.deepcopy(model)
    plan = half(model)
    expected = niwaki.cut(plain, plan).state_dict()
    niwaki.shrink(model, plan, ema=[average, plain])
    average.update_parameters(model)
    assert all(torch.equal(value, expected[name]) for name, value in plain.state_dict().items())
    second = half(model)
    niwaki.shrink(model, second, ema=(average, plain))
    assert str(plain) == str(model) == str(average.module)


def test_an_rms_norm_takes_its_averages_along() -> None:
    entry = zoo.ZOO["llama"]
    model = randomised(entry.build())
    space = niwaki.search_space(model, entry.inputs())
    plan = random_plan(space, np.random.default_rng(0))
    factors = {edit.tensor: edit.factor for edit in plan.edits_of(Rescale)}
    assert factors and any(factor != 1 for factor in factors.values())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(**entry.inputs()).logits.square().mean().backward()
    optimizer.step()
    before = {n: dict(optimizer.state[p]) for n, p in model.named_parameters() if n in factors}
    gradients = {n: p.grad for n, p in model.named_parameters() if n in factors}
    niwaki.shrink(model, plan, optimizer)
    for name, parameter in model.named_parameters():
        if name in factors:
            stays = torch.tensor(plan.tensors[name][0])
            state, gradient = optimizer.state[parameter], gradients[name]
            for key, power in (("exp_avg", -1), ("exp_avg_sq", -2)):
                torch.testing.assert_close(state[key], before[name][key][stays] * factors[name] ** power)
            assert gradient is not None
            torch.testing.assert_close(parameter.grad, gradient[stays] / factors[name])


def test_declared_states_follow() -> None:
    class Factored(torch.optim.SGD):
        """Keeps vectors."""

    model = network()
    plan, optimizer = half(model), Factored(model.parameters(), lr=0.1)
    weight = model[2].weight
    optimizer.state[weight] = {"rows": torch.arange(12.0), "columns": torch.arange(16.0), "step": 3}
    before = picture(model, optimizer)
    with pytest.raises(ShrinkError, match=r"'rows' of .*Factored has the shape \[12\] where its parameter '2.w"):
        niwaki.shrink(model, plan, optimizer)
    assert picture(model, optimizer) == before
    niwaki.register_state_layout(Factored, lacking={"rows": (-1,), "columns": (-2,)})
    try:
        niwaki.shrink(model, plan, optimizer)
    finally:
        del _LAYOUTS[Factored]
    assert optimizer.state[weight]["rows"].tolist() == list(plan.tensors["2.weight"][0])
    assert optimizer.state[weight]["columns"].tolist() == list(plan.tensors["2.weight"][1])


def test_states_that_span_parameters_are_refused() -> None:
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=2)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(batch()).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    before = picture(model, optimizer)
    with pytest.raises(ShrinkError, match="LBFGS"):
        niwaki.shrink(model, half(model), optimizer)
    assert picture(model, optimizer) == before


def test_states_of_other_kinds_of_tensor_are_refused() -> None:
    """torchao keeps moments as tensors of its own, of the parameter's shape."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        zero = torch.zeros_like(parameter)
        optimizer.state[parameter]["momentum_buffer"] = TwoTensor(zero, zero.clone())
    plan, before = half(model), copy.deepcopy(model.state_dict())
    with pytest.raises(ShrinkError, match="SGD keeps 'momentum_buffer' of its state as a TwoTensor, and only plain"):
        niwaki.shrink(model, plan, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_plans_that_do_not_fit_are_refused() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    large, small = half(model, 0.8), half(model, 0.3)
    niwaki.shrink(model, small, optimizer)
    before = picture(model, optimizer)
    with pytest.raises(PlanError, match="What has left cannot come back"):
        niwaki.shrink(model, large, optimizer)
    other = half(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)))
    with pytest.raises(PlanError, match="for another network"):
        niwaki.shrink(model, other, optimizer)
    with pytest.raises(PlanError, match="The averaged copy .* has not the tensors of the model"):
        niwaki.shrink(model, small, optimizer, ema=network())
    assert picture(model, optimizer) == before


def test_a_plan_of_a_graph_is_refused() -> None:
    model = network()
    space = niwaki.search_space(model, batch(), as_graph=True)
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
    with pytest.raises(PlanError, match="graph"):
        niwaki.shrink(model, plan)


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    plan, before = half(model), picture(model)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ShrinkError, match="belongs to a group of 2, and wrappers"):
        niwaki.shrink(model, plan)
    assert picture(model) == before


def test_plans_of_the_dense_network_go_on_holding(tmp_path: Any) -> None:
    """The space, what it plans, and files know the dense network; the model has been shrunk twice."""
    model, x = network(), batch()
    space = niwaki.search_space(model, x)
    scores = niwaki.score(space, "magnitude")
    for share in (0.8, 0.5):
        plan = niwaki.choose(space, scores, niwaki.Budget(units=share))
        niwaki.shrink(model, plan)
    assert niwaki.check(model, plan, x).holds
    final = niwaki.choose(space, scores, niwaki.Budget(units=0.3))
    small = niwaki.cut(model, final)
    niwaki.save(small, tmp_path)
    loaded = niwaki.load(network(), tmp_path)
    assert str(loaded) == str(small)
    assert torch.equal(loaded(x), small(x))
