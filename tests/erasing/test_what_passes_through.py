"""Terms that are not zero where the producers inside of a structure are, and structures that write to the state."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import niwaki

THROUGH = "something from outside of it may pass through it and be added, too"


class Net(nn.Module):
    """Layers as wide as a residual stream, and a way through them."""

    def __init__(self, way: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.norm = nn.BatchNorm1d(6)
        self.memory: Tensor
        self.register_buffer("memory", torch.zeros(2, 6))
        self.way = way

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.way(self, self.stem(x)))


def refused(way: Callable[[Net, Tensor], Tensor]) -> list[str | None]:
    """Why each structure of a network cannot be erased, in the order of the additions."""
    space = niwaki.search_space(Net(way), torch.randn(2, 3), erase=True)
    return [one.refused for one in space.structures]


def sum_of_three(net: Net, h: Tensor) -> Tensor:
    y, z = net.a(h), net.b(h)
    return (h + y) + z


def sum_of_three_in_place(net: Net, h: Tensor) -> Tensor:
    kept = h.clone()
    z = net.b(h)
    kept += net.a(h)
    return kept + z


@pytest.mark.parametrize("way", [sum_of_three, sum_of_three_in_place])
def test_a_sum_that_holds_the_stream_is_no_term_of_a_layer(way: Callable[[Net, Tensor], Tensor]) -> None:
    """h + a(h) is not zero where a is: the stream, which b reads as well, is in it."""
    assert refused(way)[-3:] == [None, THROUGH, None]


def written_into(y: Tensor, h: Tensor) -> Tensor:
    y[:, 0].copy_(h[:, 0])
    return y


PASSING: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "maximum": lambda net, h, y: torch.maximum(y, h),
    "where": lambda net, h, y: torch.where(y > 0, y, h),
    "cat": lambda net, h, y: torch.cat([y[:, :3], h[:, :3]], 1),
    "added to a product": lambda net, h, y: torch.addmm(h, y, net.b.weight),
    "written into": lambda net, h, y: written_into(y, h),
    "over the root of nothing": lambda net, h, y: y * torch.rsqrt(y.square().sum(1, keepdim=True)),
    "times a negative power": lambda net, h, y: y * y.square().sum(1, keepdim=True).pow(-0.5),
    "nothing over nothing": lambda net, h, y: y / y.norm(dim=1, keepdim=True),
}
VANISHING: dict[str, Callable[[Net, Tensor, Tensor], Tensor]] = {
    "gate": lambda net, h, y: y * torch.sigmoid(net.b(h)),
    "product with the stream": lambda net, h, y: y * h,
    "norm": lambda net, h, y: net.norm(y),
    "norm of all": lambda net, h, y: net.norm(y + h),
    "scale": lambda net, h, y: y * net.b.bias,
    "bias": lambda net, h, y: y + net.b.bias,
    "in place": lambda net, h, y: y.relu_().mul_(2),
    "product": lambda net, h, y: torch.addmm(y, y, net.b.weight),
    "norm of RMS": lambda net, h, y: y * torch.rsqrt(y.square().mean(1, keepdim=True) + 1e-6),
    "normalised": lambda net, h, y: nn.functional.normalize(y),
    "over more than nothing": lambda net, h, y: y / (y.norm(dim=1, keepdim=True) + 1e-3),
    "halves": lambda net, h, y: torch.cat([y[:, :3], net.b(h)[:, :3]], 1),
}


@pytest.mark.parametrize("name", [*PASSING, *VANISHING])
def test_what_a_branch_adds_is_zero_with_its_producers_alone(name: str) -> None:
    """Set to zero what is listed, and look at the very term; where the stream passes through, it is not zero."""
    branch = (PASSING | VANISHING)[name]
    terms: list[Tensor] = []

    def way(net: Net, h: Tensor) -> Tensor:
        terms.append(branch(net, h, net.a(h)))
        return h + terms[-1]

    torch.manual_seed(0)
    model, x = Net(way).eval(), torch.randn(2, 3)
    last = niwaki.search_space(model, x, erase=True).structures[-1]
    if name in ("scale", "bias", "product"):  # which only the class cannot do without
        read = "b.weight" if name == "product" else "b.bias"
        why = f"'b' cannot be left out of its code: its parameter '{read}' is read without a call of it"
        assert last.refused == f"{why}; use as_graph=True"
    elif name == "halves":  # by caution: zeros of two halves may be narrower than the stream
        assert last.refused is not None and "joins it with what may get narrower; use as_graph" in last.refused
    else:
        assert last.refused == (THROUGH if name in PASSING else None)
    for of, parameter in model.named_parameters():
        if of in last.producers:
            nn.init.zeros_(parameter)
    with torch.no_grad():
        model(x)
    assert bool(terms[-1].any()) == (name in PASSING)


def test_the_direction_of_a_weight_norm_stays() -> None:
    """A direction of zero length would be no number."""

    class Normed(Net):
        def __init__(self) -> None:
            super().__init__(lambda net, h: h + net.a(h))
            nn.utils.parametrizations.weight_norm(self.a)

    (one,) = niwaki.search_space(Normed(), torch.randn(2, 3), erase=True).structures
    assert one.erasable and set(one.producers) == {"a.bias", "a.parametrizations.weight.original0"}


@pytest.mark.parametrize("as_graph", [False, True])
def test_a_weight_with_norms_along_another_dimension_than_its_result_stays(as_graph: bool) -> None:
    """Nothing but its bias could be zero: the whole of its direction would be divided by nothing."""

    class Normed(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 4, 3, padding=1)
            nn.utils.parametrizations.weight_norm(self.b, dim=dim)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x + self.b(torch.relu(self.a(x))))

    def found(dim: int) -> niwaki.Structure:
        space = niwaki.search_space(Normed(dim).eval(), torch.randn(2, 4, 8), erase=True, as_graph=as_graph)
        return next(one for one in space.structures if one.name == "a..b")

    direction, length = (f"b.parametrizations.weight.original{one}" for one in (1, 0))
    assert found(0).erasable and set(found(0).producers) == {"b.bias", length}
    assert found(1).refused is not None  # composed of other operators
    assert found(2).refused == f"'{direction}' is divided by its norm, which would be zero"


def test_each_of_several_weights_without_a_length_of_their_own_stays() -> None:
    """All of them make the same stream."""

    class Branch(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.a, self.b = nn.Conv1d(4, 6, 3, padding=1), nn.Conv1d(6, 4, 3, padding=1)
            nn.utils.parametrizations.weight_norm(self.b, dim=dim)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.b(torch.relu(self.a(x)))
            return result

    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleList(Branch(dim) for dim in (2, 0, 2))
            self.stem, self.head = nn.Conv1d(4, 4, 1), nn.Conv1d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            for branch in self.branches:
                x = x + branch(x)
            result: Tensor = self.head(x)
            return result

    found = niwaki.search_space(Several().eval(), torch.randn(2, 4, 8), erase=True).structures
    divided = "'branches.{}.b.parametrizations.weight.original1' is divided by its norm, which would be zero"
    assert [one.refused for one in found] == [divided.format(0), None, divided.format(2)]


def test_a_branch_whose_values_python_reads() -> None:
    def way(net: Net, h: Tensor) -> Tensor:
        y = net.a(h)
        return h * (2 if float(y.detach().abs().sum()) > 1e-9 else 3) + y

    assert refused(way)[-1] == "Python code reads values of it"


def test_a_branch_that_a_later_call_remembers() -> None:
    """What it writes to a buffer is added in the next call, and does not vanish with its term."""

    def way(net: Net, h: Tensor) -> Tensor:
        y, before = net.a(h), net.memory.clone()
        net.memory.copy_(y.detach())
        return (h + y) * (1 + before)

    assert refused(way) == ["it writes to 'memory', which is read elsewhere too"]


def test_a_buffer_of_its_own_vanishes_with_a_branch() -> None:
    def way(net: Net, h: Tensor) -> Tensor:
        y = net.norm(net.a(h))
        net.memory.copy_(y.detach())  # nobody reads it
        return h + y

    assert refused(way) == [None]


def test_a_branch_that_writes_to_an_input() -> None:
    class Writes(Net):
        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            y = self.a(h)
            x.add_(y[:, :3].detach())
            return self.head(h + y)

    space = niwaki.search_space(Writes(sum_of_three), torch.randn(2, 3), erase=True)
    assert space.structures[-1].refused is not None and space.structures[-1].refused.endswith("an input of the model")


def test_another_run_lets_the_stream_through() -> None:
    """In eval mode the term is zero where its producers are, in train mode it is not; or Python reads it there."""

    def way(net: Net, h: Tensor) -> Tensor:
        y = net.a(h)
        return net.b(h) + (torch.maximum(y, h) if net.training else y)

    def told(net: Net, h: Tensor) -> Tensor:
        y = net.a(h)
        factor = 2 if net.training and float(y.detach().abs().sum()) > 1e-9 else 1
        return h * factor + y

    why = "another run (in train mode, or of another example call) uses its weights otherwise"
    assert refused(way) == [None, why]
    assert refused(told)[-1] == why


def test_a_table_along_a_dimension_that_the_stream_does_not_lose() -> None:
    """Positions are added to tokens: the table is what is zero along them, and the tokens pass."""

    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Linear(3, 4), nn.Linear(4, 2)
            self.table = nn.Parameter(torch.rand(1, 5, 4))

        def forward(self, x: Tensor) -> Tensor:
            h = self.stem(x)
            return self.head(h + (h + self.table).clone())

    space = niwaki.search_space(Positions(), torch.randn(2, 5, 3), erase=True)
    assert space.structures[-1].refused == THROUGH
