"""The direction read from an optimizer's state is the one that two iterates show; and sums by blocks are the sums."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop
from training import Training

from niwaki.errors import MethodError
from niwaki.methods import Schedule
from niwaki.per_unit import blocks
from niwaki.per_unit.direction import (
    Direction,
    Directions,
    KnownOptimizer,
    decay,
    families,
    family,
    family_of,
    itself,
    joined,
)
from niwaki.per_unit.sums import ROW_SUMS, row_sums
from niwaki.selection.budget import Budget

SGDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "plain decayed": {"weight_decay": 0.1},
    "plain maximized": {"maximize": True, "weight_decay": 0.1},
    "momentum": {"momentum": 0.9},
    "dampened": {"momentum": 0.8, "dampening": 0.3, "weight_decay": 0.1},
    "maximized": {"momentum": 0.9, "maximize": True, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "heavily decayed": {"weight_decay": 6.0},
}
ADAMS: dict[str, dict[str, Any]] = {
    "plain": {"weight_decay": 0.0},
    "decayed": {"weight_decay": 0.1},
    "amsgrad": {"amsgrad": True, "weight_decay": 0.1},
    "maximized": {"maximize": True, "weight_decay": 0.1},
    "other betas": {"betas": (0.5, 0.7), "eps": 1e-2},
}
UNKNOWN = {"nesterov": 5, "heavily decayed": 3}  # parameters whose iterates are kept
CASES: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    **{f"SGD {name}": (SGD, options) for name, options in SGDS.items()},
    **{f"{kind.__name__} {name}": (kind, options) for kind in (Adam, AdamW) for name, options in ADAMS.items()},
    "Adam decoupled": (Adam, {"decoupled_weight_decay": True, "weight_decay": 0.1}),
}
WAYS = {"loop": {"foreach": False}, "foreach": {"foreach": True}, "fused": {"fused": True}}


def parameters() -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((5, 3), (4,), (2, 3, 2, 2), (3,), (6,))
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in shapes]


def optimizer_of(kind: type[Optimizer], weights: list[torch.nn.Parameter], **options: Any) -> Optimizer:
    """Two param groups that differ in all that a direction depends on."""
    other = {"lr": 0.3, "weight_decay": 0.2} | ({"momentum": 0.5} if options.get("momentum") else {})
    return kind([{"params": weights[:3]}, {"params": weights[3:], **other}], lr=0.1, **options)  # type: ignore[call-arg]


def shown(optimizer: Optimizer, step: Callable[[], Any]) -> dict[Tensor, Tensor]:
    """What two iterates show of ``step``: (x (1 - lr * decoupled decay) - y) / lr, entry by entry."""
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    before = {p: p.detach().clone() for p in groups}
    step()
    return {
        p: (before[p] * (1 - group["lr"] * decay(optimizer, group)) - p.detach()) / group["lr"]
        for p, group in groups.items()
    }


def agree(found: list[Direction], expected: list[Tensor]) -> None:
    for direction, value in zip(found, expected, strict=True):
        torch.testing.assert_close(
            direction.whole(value), value, rtol=1e-12, atol=1e-12 * max(1.0, float(value.abs().max()))
        )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", CASES)
def test_state_and_iterates_agree(name: str, way: str) -> None:
    kind, options = CASES[name]
    weights = parameters()
    try:
        optimizer = optimizer_of(kind, weights, **options, **WAYS[way])
    except TypeError:
        pytest.skip("this torch has no such option")
    directions = Directions(optimizer, weights)
    generator = torch.Generator().manual_seed(1)
    for number in range(6):
        for place, weight in enumerate(weights):
            weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            if number == 2 and place in (1, 4):
                weight.grad = None  # the optimizer lets it be, whatever its momentum
        with torch.no_grad():
            directions.remember()
            copied = len(directions._before)
            expected = shown(optimizer, optimizer.step)
            for place in (1, 4) if number == 2 else ():
                expected[weights[place]] = torch.zeros_like(weights[place])
            found = directions.after()
        assert copied == UNKNOWN.get(name.split(" ", 1)[1], 0)
        agree(found, [expected[weight] for weight in weights])
        vectors = [1, 3, 4]
        whole = joined([found[v] for v in vectors], [weights[v] for v in vectors])
        row = torch.cat([expected[weights[v]] for v in vectors])
        agree([whole], [row])


@pytest.mark.parametrize("kind", [SGD, Adam, AdamW])
@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_changes_nothing(kind: type[Optimizer], fused: bool) -> None:
    """Its gradients are the unscaled ones afterwards, and a step that it skips asks for no direction."""
    weights = parameters()
    optimizer = optimizer_of(kind, weights, fused=fused)
    directions, scaler = Directions(optimizer, weights), torch.amp.GradScaler("cpu", init_scale=8.0)
    for number in range(4):
        for weight in weights:
            weight.grad = None
        scaler.scale(sum((weight.sin() * (number + 1)).sum() for weight in weights)).backward()
        if number == 1:
            weights[2].grad.fill_(float("inf"))
        before = [weight.detach().clone() for weight in weights]
        with torch.no_grad():
            directions.remember()
        expected = shown(optimizer, lambda: (scaler.step(optimizer), scaler.update()))
        if number == 1:
            assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
        else:
            with torch.no_grad():
                agree(directions.after(), [expected[weight] for weight in weights])


@pytest.mark.parametrize("name", [name for name in CASES if name.split(" ", 1)[1] not in UNKNOWN])
def test_rate_zero_has_the_direction_of_any_rate(name: str) -> None:
    kind, options = CASES[name]
    found = []
    for rate in (0.0, 1e-3):
        weights = parameters()
        optimizer = kind(weights, lr=rate, **(options | {"weight_decay": 0.0}))  # type: ignore[call-arg]
        directions = Directions(optimizer, weights)
        for weight in weights:
            weight.grad = weight.detach().cos()
        with torch.no_grad():
            directions.remember()
            optimizer.step()
            found.append([d.whole(w.detach()) for d, w in zip(directions.after(), weights, strict=True)])
        assert all((direction != 0).any() for direction in found[-1])
    for zero, some in zip(*found, strict=True):
        torch.testing.assert_close(zero, some, rtol=1e-12, atol=0)


def test_tensors_as_rates_and_betas() -> None:
    weights = parameters()
    rate = torch.tensor(0.1, dtype=torch.float64)
    for kind, options in ((AdamW, {"capturable": True}), (SGD, {"momentum": 0.9}), (RMSprop, {}), (SGD, {})):
        if options.pop("capturable", False) and not torch.cuda.is_available():
            options = {"fused": True}
        optimizer = kind(weights, lr=rate, **options)  # type: ignore[arg-type]
        directions = Directions(optimizer, weights)
        for weight in weights:
            weight.grad = weight.detach().cos()
        with torch.no_grad():
            directions.remember()
            assert bool(directions._before) == (kind is RMSprop)
            expected = shown(optimizer, optimizer.step)
            agree(directions.after(), [expected[weight] for weight in weights])
    decayed = SGD(weights, lr=rate, weight_decay=0.1)  # whether the decay is small the host cannot see
    assert not family_of(decayed).knows(decayed.param_groups[0])  # type: ignore[union-attr]
    betas = Adam(weights, lr=0.1, betas=(torch.tensor(0.9), torch.tensor(0.99)), foreach=False)  # type: ignore[arg-type]
    assert not family_of(betas).knows(betas.param_groups[0])  # type: ignore[union-attr]


def test_sparse_gradients_and_momenta() -> None:
    table = torch.nn.Embedding(6, 3, sparse=True, dtype=torch.float64)
    for options in ({}, {"momentum": 0.9}):
        optimizer = SGD(table.parameters(), lr=0.1, **options)  # type: ignore[arg-type]
        directions = Directions(optimizer, [table.weight])
        for _ in range(2):
            optimizer.zero_grad()
            table(torch.tensor([1, 4])).square().sum().backward()
            with torch.no_grad():
                expected = shown(optimizer, optimizer.step)
                agree(directions.after(), [expected[table.weight]])


def test_only_exact_classes_are_known() -> None:
    class Faster(AdamW):
        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for weight in self.param_groups[0]["params"]:
                    weight.sub_(7.0)

    weights = parameters()
    optimizer = Faster(weights, lr=0.5, weight_decay=0.0)
    directions = Directions(optimizer, weights)
    with torch.no_grad():
        directions.remember()
        optimizer.step()
        agree(directions.after(), [torch.full_like(weight, 14.0) for weight in weights])
    assert set(families()) == {SGD, Adam, AdamW}
    with pytest.raises(MethodError, match="direction of SGD is known already. Register another class"):

        @family(SGD)
        class Other(KnownOptimizer):
            def knows(self, group: Any) -> bool:
                return False

            def directions(self, held: Any) -> list[Direction]:
                return []


@pytest.mark.parametrize("kind", [SGD, AdamW])
def test_no_parameter_is_copied_where_the_state_tells(kind: type[Optimizer]) -> None:
    run = Training("conv", lambda p: kind(p, lr=0.01), Budget(macs=0.4), Schedule(start=1, until=20, periods=2))
    run.step(2)
    assert run.method.selector.scores.sampler.window.samples == 2 and not run.method.units.engine._directions._copies


@pytest.mark.parametrize("block", [1, 7, 12, 1000])
@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1)])
def test_sums_by_blocks_are_the_sums(block: int, dims: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_BLOCK", block)
    x, gradient, d = (torch.randn(5, 4, 3, dtype=torch.float64) for _ in range(3))
    direction = Direction(itself, (d,), 3.0)
    kept = [value.clone() for value in (x, gradient, d)]
    for reads in (ROW_SUMS, {"square"}, {"aligned", "product"}):
        expected = row_sums(x, gradient, 3 * d, dims, reads)
        made = blocks.blocked_sums(x, gradient, direction, dims, reads)
        assert made.keys() == expected.keys() == set(reads)
        for name, parts in expected.items():
            torch.testing.assert_close(made[name], parts, rtol=1e-12, atol=1e-12)
    assert all(torch.equal(value, old) for value, old in zip((x, gradient, d), kept, strict=True))
    none = blocks.blocked_sums(x, None, None, dims, ROW_SUMS)
    assert all((part == 0).all() for part in none["aligned"] + none["product"])


@pytest.mark.parametrize(
    "build",
    [
        lambda p: SGD(p, lr=0.05, momentum=0.9, nesterov=True),  # two iterates
        lambda p: RMSprop(p, lr=0.005),
        lambda p: AdamW(p, lr=0.02, fused=True),  # its state
        lambda p: SGD(p, lr=0.05, weight_decay=0.1),
    ],
    ids=["nesterov", "rmsprop", "fused adamw", "decayed sgd"],
)
def test_resumed_within_a_window(build: Callable[[Any], Optimizer]) -> None:
    def fresh() -> Training:
        return Training("conv", build, Budget(macs=0.4))

    whole, end = fresh(), 16
    saved = []
    for _ in range(end):
        saved.append(copy.deepcopy((whole.model.state_dict(), whole.optimizer.state_dict())))
        whole.step()
    for done in (2, 3, 4, 5, 9):  # before, within and after the first window, and in the next
        resumed = fresh()
        resumed.model.load_state_dict(saved[done][0])
        resumed.optimizer.load_state_dict(copy.deepcopy(saved[done][1]))
        resumed.done = done
        resumed.step(end - done)
        assert (resumed.marked() == whole.marked()).all()
        for name, value in resumed.parameters().items():
            assert torch.equal(value, whole.parameters()[name]), f"{name}, resumed after step {done}"
