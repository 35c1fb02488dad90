"""Optimizers that keep their state in odd places: it follows a model that shrinks, or the model stays as it is."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import niwaki
from niwaki.errors import ShrinkError
from niwaki.surgery.optimizer_state import _LAYOUTS

SCHEDULE = niwaki.Schedule(start=2, until=11, periods=3)


class Momentum(Optimizer):
    """SGD with momentum; subclasses say where the momentum is kept."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.05})
        self.parameters = [parameter for group in self.param_groups for parameter in group["params"]]

    def step(self, closure: Any = None) -> None:
        for number, parameter in enumerate(self.parameters):
            velocity = self.velocity(number, parameter)
            velocity.mul_(0.9).add_(parameter.grad)
            parameter.data.sub_(velocity, alpha=0.05)

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        raise NotImplementedError


class Counting(Momentum):
    """As MADGRAD: a count under a name in place of a parameter; and a short table in an attribute."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.coefficients = torch.tensor([3.4445, -4.7750, 2.0315])
        self.state["k"] = torch.tensor([0])  # type: ignore[index]

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        self.state["k"] += 1  # type: ignore[index]
        found: Tensor = self.state[parameter].setdefault("velocity", torch.zeros_like(parameter))
        return found


class Listed(Momentum):
    """In a list and a dict within the state of each parameter."""

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        state = self.state[parameter].setdefault("all", [{"step": 0, "velocity": torch.zeros_like(parameter)}])
        state[0]["step"] += 1
        found: Tensor = state[0]["velocity"]
        return found


class Bare(Momentum):
    """The state of a parameter is a tensor."""

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        found: Any = self.state.setdefault(parameter, torch.zeros_like(parameter))  # type: ignore[arg-type]
        return found  # type: ignore[no-any-return]


class Wrapping(Momentum):
    """As Lookahead: another optimizer inside, with a state of its own; the wrapper keeps slow weights."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.inside = {"base": [SGD(self.parameters, lr=0.05, momentum=0.9)]}

    def step(self, closure: Any = None) -> None:
        self.inside["base"][0].step()
        for parameter in self.parameters:
            slow = self.state[parameter].setdefault("slow", parameter.detach().clone())
            slow.lerp_(parameter.detach(), 0.5)


class Attribute(Momentum):
    """In a list beside the state."""

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        if "buffers" not in vars(self):
            self.buffers = [torch.zeros_like(one) for one in self.parameters]
        return self.buffers[number]


class Flat(Momentum):
    """All in one vector, with some room at its end."""

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        if "flat" not in vars(self):
            self.flat = torch.zeros(sum(one.numel() for one in self.parameters) + 7, dtype=parameter.dtype)
        first = sum(one.numel() for one in self.parameters[:number])
        return self.flat[first : first + parameter.numel()].view(parameter.shape)


class InGroup(Momentum):
    """In the param group."""

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        buffers = self.param_groups[0].setdefault("buffers", {})
        found: Tensor = buffers.setdefault(number, torch.zeros_like(parameter))
        return found


class Named(Momentum):
    """Under a name in place of a parameter."""

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        found: Any = self.state.setdefault(f"velocity of {number}", torch.zeros_like(parameter))  # type: ignore[arg-type]
        return found  # type: ignore[no-any-return]


class Box:
    """Any object."""

    __slots__ = ("content",)

    def __init__(self, content: Any) -> None:
        self.content = content


class Boxed(Momentum):
    """In an object within the state of each parameter."""

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        found: Tensor = self.state[parameter].setdefault("box", Box([torch.zeros_like(parameter)])).content[0]
        return found


class BoxedAttribute(Momentum):
    """In an object beside the state."""

    def velocity(self, number: int, parameter: Tensor) -> Tensor:
        if "box" not in vars(self):
            self.box = Box({id(one): torch.zeros_like(one) for one in self.parameters})
        found: Tensor = self.box.content[id(parameter)]
        return found


class Preconditioned(Momentum):
    """As Shampoo: a matrix over the rows of each matrix, of the same shape where that is square."""

    def step(self, closure: Any = None) -> None:
        for parameter in self.parameters:
            left = self.state[parameter].setdefault("left", torch.eye(len(parameter), dtype=parameter.dtype))
            left.add_(parameter.grad @ parameter.grad.T)  # type: ignore[union-attr]
            parameter.data.sub_(torch.linalg.solve(left, parameter.grad), alpha=0.05)


def oblong() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 9), nn.Tanh(), nn.Linear(9, 3))


def square() -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))


def trained(
    make: Callable[[Any], Optimizer], network: Callable[[], nn.Module], shrink: Any
) -> tuple[nn.Module, niwaki.HESSO, nn.Module]:
    """The model, its method and the cut network after some steps past the schedule."""
    torch.manual_seed(0)
    model = network().double()
    x = torch.randn(64, 6 if network is oblong else 8, dtype=torch.float64)
    optimizer = make(model.parameters())
    method = niwaki.HESSO(
        niwaki.search_space(model, x[:2]), optimizer, niwaki.Budget(params=0.5), SCHEDULE, shrink=shrink, window=2
    )
    for step in range(SCHEDULE.until + 3):
        optimizer.zero_grad()
        model(x.roll(step, 0)[:16]).square().mean().backward()
        optimizer.step()
    return model, method, niwaki.cut(model, method.plan())


@pytest.mark.parametrize(
    ("make", "follows"),
    [
        *((kind, True) for kind in (Counting, Listed, Bare, Wrapping)),
        *((kind, False) for kind in (Attribute, Flat, InGroup, Named, Boxed, BoxedAttribute)),
    ],
)
def test_wherever_the_state_is_the_run_ends_the_same(make: Callable[[Any], Optimizer], follows: bool) -> None:
    _, _, expected = trained(make, oblong, False)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model, method, small = trained(make, oblong, niwaki.ShrinkPolicy(cost=0.1))
    assert [str(one.message)[:43] for one in told] == (
        [] if follows else ["hesso goes on without shrinking the model. "]
    )
    assert (sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in oblong().parameters())) != follows
    assert method.done
    for ours, theirs in zip(small.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_nothing_is_changed_where_a_state_is_hidden() -> None:
    model, method, _ = trained(InGroup, oblong, False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ShrinkError, match=r"InGroup keeps a tensor of shape \[.*\] in its param groups, as 'buffers'"):
        method.shrink()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert method.units.live.here.all()


def test_the_shape_of_a_square_matrix_does_not_tell() -> None:
    """Whether a state of that shape goes with rows and columns as the matrix does has to be declared."""
    told = r"goes on without .* The state 'left' .* equally long dimensions, .*register_state_layout"
    with pytest.warns(UserWarning, match=told):
        model, _, small = trained(Preconditioned, square, niwaki.ShrinkPolicy(cost=0.1))
    assert model[0].weight.shape == (8, 8)  # type: ignore[index,union-attr]
    _, _, expected = trained(Preconditioned, square, False)
    assert all(torch.equal(*pair) for pair in zip(small.parameters(), expected.parameters(), strict=True))
    with pytest.warns(UserWarning, match="The state 'velocity'"):
        trained(Counting, square, niwaki.ShrinkPolicy(cost=0.1))
    niwaki.register_state_layout(Counting, lacking={"velocity": ()})
    try:
        model, _, small = trained(Counting, square, niwaki.ShrinkPolicy(cost=0.1))
        _, _, expected = trained(Counting, square, False)
    finally:
        del _LAYOUTS[Counting]
    assert len(model[0].weight) < 8  # type: ignore[index,arg-type]
    for ours, theirs in zip(small.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(8, 12), nn.RMSNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last(self.norm(self.first(x)))
        return y


def test_a_state_of_a_rescaled_weight_has_to_be_declared() -> None:
    """Where an RMSNorm gets narrower, averages of gradients and copies of the weights go with other powers of it."""
    with pytest.warns(UserWarning, match=r"goes on without .*'norm.weight' is rescaled .*powers=\{'velocity': -1\}"):
        model, _, _ = trained(Counting, Normed, niwaki.ShrinkPolicy(cost=0.1))
    assert len(model.norm.weight) == 12  # type: ignore[arg-type,union-attr]
    niwaki.register_state_layout(Counting, powers={"velocity": -1})
    try:
        model, _, _ = trained(Counting, Normed, niwaki.ShrinkPolicy(cost=0.1))
    finally:
        del _LAYOUTS[Counting]
    assert len(model.norm.weight) < 12  # type: ignore[arg-type,union-attr]


def test_layouts_are_those_of_the_optimizer_inside() -> None:
    class Outside(Momentum):
        """Steps another one, whose state it shows as its own."""

        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.inside = torch.optim.AdamW(self.parameters, lr=0.01)
            self.state = self.inside.state

        def step(self, closure: Any = None) -> None:
            self.inside.step()

    model, _, _ = trained(Outside, Normed, niwaki.ShrinkPolicy(cost=0.1))
    assert len(model.norm.weight) < 12  # type: ignore[arg-type,union-attr]
