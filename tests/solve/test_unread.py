"""Sizes that other methods than forward read: they follow where blocks of different widths agree, else a note tells."""

from __future__ import annotations

from functools import cached_property
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import niwaki
from niwaki.core.edits import SetAttribute
from niwaki.core.plan import Plan
from niwaki.networks.torchvision_cpu import load

load()
import torchvision  # noqa: E402


class RepBlock(nn.Module):
    """Three branches in training, one convolution in deployment."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_channels = width
        self.three, self.one = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 1)
        self.merged: nn.Conv2d | None = None

    def forward(self, x: Tensor) -> Tensor:
        return self.merged(x).relu() if self.merged is not None else (self.three(x) + self.one(x) + x).relu()

    def deploy(self) -> None:
        identity = functional.pad(torch.eye(self.in_channels)[:, :, None, None], [1] * 4)
        merged = nn.Conv2d(self.in_channels, self.in_channels, 3, padding=1)
        with torch.no_grad():
            merged.weight.copy_(self.three.weight + functional.pad(self.one.weight, [1] * 4) + identity)
            assert merged.bias is not None and self.three.bias is not None and self.one.bias is not None
            merged.bias.copy_(self.three.bias + self.one.bias)
        self.merged = merged


class Noisy(nn.Module):
    """Draws its noise anew, between forward passes."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.inside, self.outside = inside, outside
        self.weight, self.noise = nn.Parameter(torch.randn(outside, inside)), nn.Parameter(torch.ones(outside))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight) * self.noise

    def reset(self) -> None:
        with torch.no_grad():
            self.noise.mul_(torch.rand(self.outside))


def _half(net: nn.Module, x: Tensor) -> tuple[niwaki.SearchSpace, Plan, nn.Module]:
    space = niwaki.search_space(net.eval(), x)
    plan = niwaki.choose(space, niwaki.score(space, "random"), niwaki.Budget(units=0.5))
    return space, plan, niwaki.cut(net, plan)


@settings(max_examples=3, deadline=None)
@given(st.lists(st.integers(6, 24), min_size=2, max_size=3, unique=True))
def test_blocks_of_different_widths_follow(widths: list[int]) -> None:
    layers: list[nn.Module] = []
    for before, width in zip([3, *widths], widths, strict=False):
        layers += [nn.Conv2d(before, width, 3, padding=1), RepBlock(width)]
    net, x = nn.Sequential(*layers, nn.Conv2d(widths[-1], 4, 1)), torch.randn(1, 3, 8, 8)
    space, plan, small = _half(net, x)
    assert not space.notes
    assert niwaki.check(net, Plan.from_json(plan.to_json()), x).holds
    before_merge = small(x)
    for block in small.modules():
        if isinstance(block, RepBlock):
            assert block.in_channels == block.three.in_channels
            block.deploy()
    assert torch.allclose(small(x), before_merge, atol=1e-5)
    assert [block.in_channels for block in net.modules() if isinstance(block, RepBlock)] == widths


def test_layers_with_noise_of_their_own_follow() -> None:
    net = nn.Sequential(Noisy(5, 12), nn.ReLU(), Noisy(12, 9), nn.ReLU(), Noisy(9, 4))
    space, _, small = _half(net, torch.randn(2, 5))
    assert not space.notes
    for layer in small:
        if isinstance(layer, Noisy):
            layer.reset()
            assert (layer.outside, layer.inside) == layer.weight.shape
    small(torch.randn(2, 5))
    rest = niwaki.search_space(small, torch.randn(2, 5))
    again = niwaki.cut(small, niwaki.choose(rest, niwaki.score(rest, "random"), niwaki.Budget(units=0.7)))
    assert isinstance(again[0], Noisy) and again[0].outside == len(again[0].weight) < 12


def test_a_single_width_is_named_in_a_note() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 3), RepBlock(12), RepBlock(12), nn.Conv2d(12, 4, 1))
    space, _, small = _half(net, torch.randn(1, 3, 8, 8))
    assert space.notes == (
        "These numbers equal a size that the layers beside them may lose: 1.in_channels is 12, read by deploy (and so "
        "for 1 like it). No run shows what they mean, so a cut does not change them. If a number is that size, set it "
        "after the cut.",
    )
    assert "Note: These numbers" in str(space)
    assert isinstance(small[1], RepBlock) and small[1].in_channels == 12


class Settled(nn.Module):
    """Numbers that equal widths: by coincidence, in settings that blocks share; and one that forward reads."""

    def __init__(self, width: int, options: object) -> None:
        super().__init__()
        self.steps, self.kernel, self.width, self.options = 12, 3, width, options
        self.up, self.down = nn.Linear(width, 30), nn.Linear(30, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, self.width)
        return x + self.down(self.up(x).relu())

    def told(self) -> str:
        return f"{self.steps} {self.kernel} {self.width} {self.options}"


@pytest.mark.parametrize("kind", [lambda: SimpleNamespace(hidden=30), lambda: {"hidden": 30}, lambda: [30, 7]])
def test_coincidences_and_settings_are_never_edited(kind: object) -> None:
    assert callable(kind)
    options = kind()
    net = nn.Sequential(nn.Linear(5, 12), Settled(12, options), nn.Linear(12, 20), Settled(20, options))
    net.append(nn.Linear(20, 2))
    space, plan, small = _half(net, torch.randn(3, 5))
    (note,) = space.notes
    assert "1.steps is 12" in note and "(and so" not in note and "kernel" not in note and "width" not in note
    assert "1.options" in note and "3.options" not in note
    assert {edit.name for edit in plan.edits_of(SetAttribute)} <= {"in_features", "out_features", "width"}
    for block in small:
        if isinstance(block, Settled):
            assert block.steps == 12 and block.options == options


class Plain(nn.Module):
    """Its number is read while it is built and printed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self._build()

    def _build(self) -> None:
        self.up, self.down = nn.Linear(self.width, 30), nn.Linear(30, self.width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x).relu())

    def extra_repr(self) -> str:
        return f"width={self.width}"


class ByMethod(Plain):
    def merge(self) -> Tensor:
        return torch.eye(self.width)


class ByProperty(Plain):
    @property
    def merge(self) -> int:
        return self.width * 2


class Cached(Plain):
    @cached_property
    def merge(self) -> int:
        return self.width * 2


class Decorated(Plain):
    @torch.no_grad()
    def merge(self) -> Tensor:
        return torch.eye(self.width)


class InComprehension(Plain):
    def merge(self) -> list[int]:
        return [self.width * times for times in range(3)]


class ByName(Plain):
    def merge(self) -> object:
        return getattr(self, "width", None)


class BuildsAgain(Plain):
    def merge(self) -> None:
        self._build()


class OtherBranch(Plain):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if x.ndim == 2 else x.new_ones(self.width)


@pytest.mark.parametrize(
    ("kind", "reader"),
    [
        (Plain, None),
        *((kind, "merge") for kind in (ByMethod, ByProperty, Cached, Decorated, InComprehension, ByName)),
        (BuildsAgain, "_build"),
        (OtherBranch, None),
    ],
)
def test_only_numbers_that_a_method_reads_are_named(kind: type[Plain], reader: str | None) -> None:
    net = nn.Sequential(nn.Linear(5, 12), kind(12), nn.Linear(12, 2))
    notes = niwaki.search_space(net.eval(), torch.randn(3, 5)).notes
    assert [f"1.width is 12, read by {reader}." in note for note in notes] == [True] * (reader is not None)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.blocks, self.last = nn.Linear(5, 12), nn.ModuleList([Plain(12)]), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.blocks[0](self.first(x)))


class Around(Holder):
    """Reads the number of a module inside."""

    def start(self) -> Tensor:
        return torch.zeros(next(block.width for block in self.blocks))


class Apart(Holder):
    """Reads a number of the same name elsewhere."""

    def start(self, config: SimpleNamespace) -> Tensor:
        return torch.zeros(config.width, out=self.last.weight)


@pytest.mark.parametrize(("kind", "named"), [(Around, True), (Apart, False)])
def test_numbers_that_a_module_around_reads_are_named(kind: type[nn.Module], named: bool) -> None:
    notes = niwaki.search_space(kind().eval(), torch.randn(3, 5)).notes
    assert [" blocks.0.width is 12, read by start." in note for note in notes] == [True] * named


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_ordinary_networks_have_no_such_notes(name: str) -> None:
    net = torchvision.models.get_model(name, num_classes=10).eval()
    assert not niwaki.search_space(net, torch.randn(1, 3, 64, 64)).notes


def test_numbers_of_torch_follow_their_table() -> None:
    class Own(nn.Linear):
        pass

    net = nn.Sequential(Own(5, 12), nn.ReLU(), Own(12, 9), nn.ReLU(), nn.Linear(9, 2))
    space, _, small = _half(net, torch.randn(3, 5))
    assert not space.notes
    assert all(layer.out_features == len(layer.weight) for layer in small if isinstance(layer, nn.Linear))


def test_what_could_be_read_unnoticed_is_left_alone() -> None:
    class Exact(nn.Module):
        """Its number is not an integer to it where it is tracked."""

        def __init__(self, width: int) -> None:
            super().__init__()
            self.width, self.up = width, nn.Linear(width, width)

        def forward(self, x: Tensor) -> Tensor:
            y = self.up(x)
            return y.reshape(-1, self.width) if type(self.width) is int else y * 2

    net = nn.Sequential(nn.Linear(5, 12), Exact(12), nn.Linear(12, 9), Exact(9), nn.Linear(9, 2))
    x = torch.randn(3, 5)
    space, plan, small = _half(net, x)
    assert not any("equal a size" in note for note in space.notes)
    assert not any(edit.name == "width" for edit in plan.edits_of(SetAttribute))
    assert niwaki.check(net, plan, x).holds and small(x).shape == (3, 2)
