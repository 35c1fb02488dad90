"""check_model passes what is lawful, and says in a sentence what is not."""

from __future__ import annotations

from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki.testing.models as kit
import niwaki.testing.rivals as rivals
from niwaki import SearchSpace, search_space
from niwaki.core.precision import doubled
from niwaki.errors import TraceError
from niwaki.testing import ModelReport, check_model

ROWS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers with a norm and dropout between them, and a zero-initialised scale."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.drop = nn.Dropout(0.5)
        self.scale = nn.Parameter(torch.zeros(8))
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.drop(self.norm(self.first(x))).relu() * self.scale)


class InFloat32(nn.Module):
    """Computes in float32 inside, whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        wide = hidden.to(torch.float32)
        return self.last((wide.sigmoid() + torch.full((), 0.1, dtype=torch.float32)).float().type_as(x))


class Pinned(nn.Module):
    """No unit: its only inner width is averaged over in a way that cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.first(x)))


def test_a_lawful_model_is_reported() -> None:
    report = check_model(Net(), ROWS, plans=2)
    assert (report.units, report.groups, report.plans) == (8, 1, 2)
    assert report.forward < 1e-12 and report.backward is not None and report.backward < 1e-12
    assert 0 < report.kept < 1 and report.coverage > 0.9
    assert str(report).startswith("Exact for 2 random plans over 8 units in 1 groups")
    with pytest.raises(FrozenInstanceError):
        report.units = 0  # type: ignore[misc]


def test_the_model_is_left_as_it_was() -> None:
    net = Net().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    check_model(net, ROWS, plans=1)
    assert net.training and net.drop.p == 0.5
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_model_that_does_not_train_is_checked_forward() -> None:
    class Evaluated(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise RuntimeError("only for evaluation")
            return super().forward(x)

    assert check_model(Evaluated(), ROWS, plans=1).backward is None
    assert check_model(Net(), ROWS, plans=1, train=False).backward is None


def test_float32_inside_is_doubled() -> None:
    assert check_model(InFloat32(), ROWS, plans=2).forward < 1e-14


def test_too_little_coverage_is_a_sentence_with_reasons() -> None:
    with pytest.raises(AssertionError, match=r"Only 0.0% of the parameters .* 50.0% are asked for.*norm"):
        check_model(Pinned(), ROWS, least_coverage=0.5)


def test_a_model_that_does_not_run_is_told() -> None:
    with pytest.raises(TraceError, match="does not run"):
        check_model(Net(), torch.randn(5, 7))


def test_the_first_diverging_module_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong_cut(model: nn.Module, plan: object) -> nn.Module:
        small = real(model, plan)
        with torch.no_grad():
            small.norm.weight.mul_(1.01)
        return small

    import niwaki.verify

    real = niwaki.verify.cut_module
    monkeypatch.setattr(niwaki.verify, "cut_module", wrong_cut)
    with pytest.raises(AssertionError, match=r"Random plan 0 \(seed 0\): NOT EXACT: .*; first in module .*"):
        check_model(Net(), ROWS)


def test_wrong_gradients_are_told_by_parameter(monkeypatch: pytest.MonkeyPatch) -> None:

    def wrong_cut(model: nn.Module, plan: object) -> nn.Module:
        small = real(model, plan)
        small.first.weight.register_hook(lambda gradient: gradient * 1.01)
        return small

    real = rivals.cut
    monkeypatch.setattr(rivals, "cut", wrong_cut)
    with pytest.raises(AssertionError, match="in train mode, the gradient of 'first.weight' in the cut network"):
        check_model(Net(), ROWS)


def test_a_cut_model_that_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(model: nn.Module, plan: object) -> nn.Module:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr("niwaki.verify.cut_module", broken)
    with pytest.raises(AssertionError, match="Random plan 0 .*the cut model fails: mat1 and mat2"):
        check_model(Net(), ROWS)


def test_round_off_that_the_reference_has_itself_is_no_violation() -> None:
    """A BatchNorm over two equal-and-opposite values: its gradients are round-off."""
    twins = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    assert check_model(twins, ROWS[:2], plans=3).backward is not None
    assert rivals.Deviation(1e-5, noise=1e-5).within(1e-8)
    assert not rivals.Deviation(1e-5, noise=1e-9).within(1e-8)


class Amplifying(nn.Module):
    """Makes 1e-16 to 1e-8 on the way to its outputs. It adds up by `sum`, in an order that depends on the width on any
    processor; a matrix product may add zeros in between and come out the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        products = self.first(x).relu()[:, None] * self.last.weight
        return (1e9 * products.sum(-1)).sin()


def test_outputs_are_compared_with_the_round_off_of_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    net = Amplifying()
    space = search_space(net, ROWS)
    plan, call = kit.random_plan(space, np.random.default_rng(0)), ((ROWS,), {})
    found = rivals.Rivals(net, plan).outputs(call)
    assert found.deviation > 1e-10
    assert found.within(1e-10)
    monkeypatch.setattr(rivals, "zero_out", lambda model, plan: model)
    assert not rivals.Rivals(net, plan).outputs(call).within(1e-10)


def test_a_consumed_model_is_the_zeroed_one() -> None:
    net = kit.randomised(Net())
    plan = kit.random_plan(search_space(net, ROWS), np.random.default_rng(0))
    apart, consumed = rivals.Rivals(net, plan), rivals.Rivals(net, plan, consume=True)
    call = ((ROWS,), {})
    assert apart.outputs(call) == consumed.outputs(call)
    assert apart.gradients(call) == consumed.gradients(call)
    assert bool((net.first.weight == 0).any())


def test_why_there_are_no_gradients_is_said() -> None:
    frozen = Net().requires_grad_(False)
    plan = kit.random_plan(search_space(frozen, ROWS), np.random.default_rng(0))
    pair = rivals.Rivals(frozen, plan)
    assert pair.gradients(((ROWS,), {})) is None
    assert pair.refusal == "no parameter gets a gradient"


def test_randomised_leaves_no_constant_parameter() -> None:
    net = kit.randomised(Net())
    assert all(bool((tensor != tensor.flatten()[0]).any()) for _, tensor in net.named_parameters())
    assert bool((net.norm.running_var != 1).all())


def test_random_plans_differ_and_keep_what_ties_ask_for() -> None:
    space: SearchSpace = search_space(Net(), ROWS)
    rng = np.random.default_rng(0)
    plans = [kit.random_plan(space, rng) for _ in range(5)]
    assert len({plan.kept[space.groups[0].name] for plan in plans}) > 1


def test_doubled_ends_with_its_block() -> None:
    with doubled():
        assert torch.ones(1).dtype == torch.float64
        assert torch.ones(1, dtype=torch.float32).dtype == torch.float64
        assert torch.ones(1).softmax(0, dtype=torch.float32).dtype == torch.float64
    assert torch.ones(1).dtype == torch.float32


def test_the_report_is_public() -> None:
    assert ModelReport(1, 1, 1.0, 1, 0.0, None, 0.5).backward is None
