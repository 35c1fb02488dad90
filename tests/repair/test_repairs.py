"""Width across an RMSNorm: a cut rescales its weight and its epsilon, and stays exact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exactness import deviations
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import Rescale
from niwaki.core.plan import Plan
from niwaki.testing.models import random_plan, randomised
from niwaki.trace import recorder


class Composed(nn.Module):
    """As transformers writes it: in float32, the weight last."""

    def __init__(self, width: int, eps: float = 1e-2) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), eps

    def forward(self, x: Tensor) -> Tensor:
        variance = x.pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon)).to(x.dtype)


class OnePlus(nn.Module):
    """With a weight that is added to one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(width)), 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * (1.0 + self.weight)


class ByRoot(nn.Module):
    """Divided by a root, weightless: the layers that read it take the factor up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.eps = 1e-2

    def forward(self, x: Tensor) -> Tensor:
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class LiteralEps(nn.Module):
    """Its epsilon is not an attribute, so nothing can repair it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-2)


class UsedTwice(Composed):
    """Its weight is also used as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x * self.weight


class EpsUsedTwice(Composed):
    """Its epsilon is also used as it is."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x * (x * x + self.variance_epsilon)


class Net(nn.Module):
    """Two residual branches on one width, with a norm before each and before the head."""

    def __init__(self, norm: Callable[[int], nn.Module], shared: bool = False) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(11, 12), nn.Linear(12, 3)
        self.norm1, self.norm2, self.norm3 = norm(12), norm(12), norm(12)
        if shared:
            self.norm2 = self.norm1
        self.up1, self.down1 = nn.Linear(12, 20), nn.Linear(20, 12)
        self.up2, self.down2 = nn.Linear(12, 16), nn.Linear(16, 12)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        h = h + self.down1(torch.relu(self.up1(self.norm1(h))))
        h = h + self.down2(torch.relu(self.up2(self.norm2(h))))
        result: Tensor = self.head(self.norm3(h))
        return result


def _prepared(model: nn.Module) -> tuple[nn.Module, Tensor, niwaki.SearchSpace]:
    torch.manual_seed(0)
    x = torch.randint(0, 11, (2, 5))
    model = randomised(model)
    return model, x, niwaki.search_space(model, x)


REPAIRED: dict[str, Callable[[], nn.Module]] = {
    "composed": lambda: Net(Composed),
    "one plus": lambda: Net(OnePlus),
    "weightless": lambda: Net(ByRoot),
    "torch, eps": lambda: Net(lambda width: nn.RMSNorm(width, eps=1e-2)),
    "torch, eps None": lambda: Net(nn.RMSNorm),
    "torch, weightless": lambda: Net(lambda width: nn.RMSNorm(width, eps=1e-2, elementwise_affine=False)),
    "shared": lambda: Net(Composed, shared=True),
}


@pytest.mark.parametrize("name", REPAIRED)
def test_width_across_an_rms_norm_is_exact(name: str) -> None:
    model, x, space = _prepared(REPAIRED[name]())
    assert 12 in [group.units for group in space.groups], space
    assert space.coverage > 0.99
    for seed in range(3):
        plan = random_plan(space, np.random.default_rng(seed))
        assert plan.edits_of(Rescale)
        found = deviations(model, plan, x)
        assert found["eval"] < 1e-12, found
        assert found["train"] < 1e-9, found
        again = Plan.from_json(plan.to_json())
        assert again.edits == plan.edits


PINNED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a literal epsilon": (lambda: Net(LiteralEps), "a mean over this dimension counts its entries"),
    "a weight used twice": (lambda: Net(UsedTwice), "a mean over this dimension counts its entries"),
    "an epsilon used twice": (lambda: Net(EpsUsedTwice), "a mean over this dimension counts its entries"),
}


@pytest.mark.parametrize("name", PINNED)
def test_what_cannot_be_repaired_is_pinned(name: str) -> None:
    build, reason = PINNED[name]
    model, x, space = _prepared(build())
    assert 12 not in [group.units for group in space.groups]
    pin = next(pin for pin in space.pins if pin.parameter == "embed.weight" and pin.dim == 1)
    assert reason in pin.reason and "test_repairs.py" in str(pin)
    assert deviations(model, random_plan(space, np.random.default_rng(0)), x)["eval"] < 1e-12


def test_the_repair_is_sqrt_of_n_over_m() -> None:
    model, _, space = _prepared(Net(lambda width: nn.RMSNorm(width, eps=1e-2)))
    width = next(group for group in space.groups if group.units == 12)
    keep = np.ones(space.num_units, dtype=bool)
    keep[width.first : width.first + 9] = False
    small: Any = niwaki.cut(model, space.plan(keep))
    dense: Any = model
    assert torch.allclose(small.norm1.weight, dense.norm1.weight[9:] * 2)
    assert small.norm1.eps == pytest.approx(4e-2)
    assert dense.norm1.eps == 1e-2 and type(dense.norm1.eps) is float


def test_an_epsilon_of_none_follows_the_dtype_of_the_model() -> None:
    model, _, space = _prepared(Net(nn.RMSNorm))
    width = next(group for group in space.groups if group.units == 12)
    keep = np.ones(space.num_units, dtype=bool)
    keep[width.first : width.first + 6] = False
    plan = space.plan(keep)
    small: Any = niwaki.cut(model, plan)
    assert small.norm1.eps == 2 * torch.finfo(torch.float32).eps
    double: Any = niwaki.cut(model.double(), plan)
    assert double.norm1.eps == 2 * torch.finfo(torch.float64).eps


def test_saved_and_loaded_networks_keep_their_repairs(tmp_path: Path) -> None:
    model, x, space = _prepared(Net(OnePlus))
    small = niwaki.cut(model, random_plan(space, np.random.default_rng(3))).eval()
    niwaki.save(small, tmp_path / "small")
    loaded = niwaki.load(Net(OnePlus), tmp_path / "small").eval()
    assert torch.equal(loaded(x), small(x))
    ours: Any = small
    theirs: Any = loaded
    assert theirs.norm1.eps == ours.norm1.eps != 1e-2


def test_an_epsilon_that_only_seems_to_follow_is_found_by_the_rehearsal() -> None:
    """`min` hands the attribute on as it is, until a larger one loses against the literal."""

    class Capped(Composed):
        def forward(self, x: Tensor) -> Tensor:
            variance = x.pow(2).mean(-1, keepdim=True)
            return self.weight * (x * torch.rsqrt(variance + min(self.variance_epsilon, 1.1e-2)))

    model, x, space = _prepared(Net(Capped))
    assert 12 not in [group.units for group in space.groups]
    assert deviations(model, random_plan(space, np.random.default_rng(0)), x)["eval"] < 1e-12


def test_a_fused_norm_is_taken_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some devices have an RMSNorm of one operator. Here one of our own stands for it."""

    def parts(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight

    def fused(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return torch.nn.functional.rms_norm(x, x.shape[-1:], weight, eps)

    library = torch.library.Library("niwaki_tests", "DEF")  # noqa: TOR901
    library.define("rms(Tensor x, Tensor weight, float eps) -> Tensor")
    library.impl("rms", parts, "CompositeImplicitAutograd")
    library.impl("rms", fused, "CPU")
    operator = torch.ops.niwaki_tests.rms.default

    class Fused(Composed):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = operator(x, self.weight, self.variance_epsilon)
            return result

    assert 12 not in [group.units for group in _prepared(Net(Fused))[2].groups]
    monkeypatch.setattr(recorder, "COMPOSED", {operator})
    assert 12 in [group.units for group in _prepared(Net(Fused))[2].groups]


def test_check_sees_through_norms_in_float32() -> None:
    """What transformers' norms round to float32 would hide what the law is about."""

    class Single(Composed):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.to(torch.float32)).to(x.dtype)

    model, x, space = _prepared(Net(Single))
    found = niwaki.check(model, random_plan(space, np.random.default_rng(0)), x)
    assert found.holds and found.deviation < 1e-12, found


class Counted(nn.Module):
    """Whole numbers made of an average over hidden units."""

    def __init__(self, whole: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last, self.table, self.whole = nn.Linear(5, 8), nn.Linear(1, 3), nn.Embedding(50, 3), whole

    def forward(self, x: Tensor) -> Tensor:
        number = self.whole(20 * torch.relu(self.first(x)).mean(-1, keepdim=True))
        return self.last(number) if number.is_floating_point() else self.table(number.clamp(0, 49))


@pytest.mark.parametrize("whole", [lambda x: x.long().to(x.dtype), lambda x: x.int(), lambda x: x.round().long()])
def test_whole_numbers_carry_no_factor(whole: Callable[[Tensor], Tensor]) -> None:
    space = niwaki.search_space(Counted(whole), torch.randn(4, 5))
    assert not space.num_units
    assert any("a mean over this dimension counts its entries" in pin.reason for pin in space.pins)


def test_what_is_above_a_bound_carries_no_factor_and_needs_none() -> None:
    net, x = Counted(lambda x: x * (x > 0)), torch.randn(4, 5)
    space = niwaki.search_space(net, x)
    assert space.num_units == 8
    assert deviations(net, random_plan(space, np.random.default_rng(0)), x)["eval"] < 1e-10
