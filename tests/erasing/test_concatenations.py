"""Structures at concatenations: which slices of what reads them go along, and that what is cut equals the reference."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

import niwaki
from niwaki.core.compose import composed, difference
from niwaki.core.edits.erase import Erase
from niwaki.core.space import SearchSpace
from niwaki.erasing.reading import Reading, ReadPart
from niwaki.errors import NiwakiError
from niwaki.networks.torchvision_cpu import load
from niwaki.solve import gates
from niwaki.testing.erasing import check_erasing
from niwaki.testing.models import randomised

X = torch.randn(2, 3, 8, 8)


class Branches(nn.Module):
    """Inception: branches with and without norms, one of pooling only, one of a single channel, one that is not zero
    where its weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.a = nn.Sequential(nn.Conv2d(6, 4, 1), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.b = nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 7, 3, padding=1), nn.BatchNorm2d(7))
        self.pool = nn.MaxPool2d(3, 1, 1)
        self.read, self.also = nn.Conv2d(17, 8, 1), nn.Conv2d(17, 8, 1)
        self.single, self.gate = nn.Conv2d(8, 1, 1), nn.Conv2d(8, 3, 1)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.cat([self.a(x), self.b(x), self.pool(x)], 1)
        x = torch.relu(self.read(x)) + self.also(torch.sigmoid(x))
        x = torch.cat([self.single(x), torch.sigmoid(self.gate(x))], 1)
        return self.head(x.mean((2, 3)))


class DenseBlock(nn.Module):
    """Each layer reads all before it, and what they made is concatenated anew for each, or kept concatenated."""

    def __init__(self, chained: bool) -> None:
        super().__init__()
        self.stem, self.chained = nn.Conv2d(3, 6, 3, padding=1), chained
        self.norms = nn.ModuleList(nn.BatchNorm2d(6 + 4 * layer) for layer in range(4))
        self.layers = nn.ModuleList(nn.Conv2d(6 + 4 * layer, 4, 3, padding=1) for layer in range(3))
        self.head = nn.Linear(18, 2)

    def forward(self, x: Tensor) -> Tensor:
        made = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            made.append(layer(torch.relu(norm(torch.cat(made, 1) if len(made) > 1 else made[0]))))
            made = [torch.cat(made, 1)] if self.chained else made
        x = made[0] if self.chained else torch.cat(made, 1)
        return self.head(torch.relu(self.norms[-1](x)).mean((2, 3)))


class UNet(nn.Module):
    """Two skips, one of them through a convolution; what comes from below is a structure with all that is below it."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.ModuleList(nn.Conv2d(*widths, 3, padding=1) for widths in ((3, 4), (4, 6), (6, 8)))
        self.skip = nn.Conv2d(4, 3, 1)
        self.up = nn.ModuleList([nn.ConvTranspose2d(7, 5, 2, 2), nn.ConvTranspose2d(8, 5, 2, 2)])
        self.out = nn.ModuleList([nn.Conv2d(8, 2, 3, padding=1), nn.Conv2d(11, 7, 3, padding=1)])

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.down[0](x))
        b = torch.relu(self.down[1](functional.max_pool2d(a, 2)))
        c = torch.relu(self.down[2](functional.max_pool2d(b, 2)))
        y = torch.relu(self.out[1](torch.cat([self.up[1](c), b], 1)))
        return self.out[0](torch.cat([self.up[0](y), self.skip(a)], 1))


class Shuffled(nn.Module):
    """Behind the concatenation: a depthwise convolution, a gate of squeeze and excitation, a shuffle of halves, sizes
    of a view that follow, and a linear layer that reads every pixel of every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.squeeze, self.excite = nn.Conv2d(16, 3, 1), nn.Conv2d(3, 16, 1)
        self.head = nn.Linear(16 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.a(x), functional.avg_pool2d(self.b(x), 3, 1, 1), self.c(x)], 1)
        x = self.depthwise(x)
        x = x * torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        first, second = functional.avg_pool2d(x, 4).split(8, 1)
        return self.head(torch.cat([second, first], 1).flatten(1))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int]] = {  # how many structures can be erased
    "branches": (Branches, 7),
    "dense block": (lambda: DenseBlock(False), 3),
    "dense block, chained": (lambda: DenseBlock(True), 4),  # and the first of them reads a skip
    "U-Net": (UNet, 4),
    "shuffled": (Shuffled, 5),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_law(name: str) -> None:
    build, erasable = NETWORKS[name]
    torch.manual_seed(0)
    report = check_erasing(build(), X, plans=8, as_graph=True, least_erasable=erasable)
    assert report.erasable == erasable and report.erased > 0.4


ZOO = ["squeezenet1_1", "shufflenet_v2_x0_5", "densenet121"]


@pytest.mark.parametrize("name", [*NETWORKS, *ZOO])
def test_widths_are_the_same_beside_structures(name: str) -> None:
    load()
    build = NETWORKS[name][0] if name in NETWORKS else partial(import_module("torchvision").models.get_model, name)
    model, x = build().eval(), X if name in NETWORKS else torch.randn(1, 3, 64, 64)
    plain, beside = niwaki.search_space(model, x), niwaki.search_space(model, x, erase=True)
    assert list(map(str, plain.pins)) == list(map(str, beside.pins)) and plain.coverage == beside.coverage
    alive = [group for group in beside.groups if group.structure is None]
    assert [(g.name, g.first, g.units) for g in plain.groups] == [(g.name, g.first, g.units) for g in alive]
    for ours, theirs in zip(plain.groups, alive, strict=True):
        assert list(map(str, ours.slices)) == list(map(str, theirs.slices))
    assert plain.numbers.deciding.items() <= beside.numbers.deciding.items() and plain.ties == beside.ties
    ours, theirs = (list(map(str, space.numbers.equations)) for space in (plain, beside))
    assert ours == theirs[: len(ours)]


def test_which_slices_go() -> None:
    space = niwaki.search_space(Branches(), X, as_graph=True, erase=True)
    groups = {group.name: group for group in space.groups if group.structure is not None}

    def slices(name: str) -> set[str]:
        return {str(piece) for piece in groups[f"{name} (whole)"].slices if piece.parameter}

    assert "read.weight dim 1: 4 positions per unit (consumer)" in slices("a")
    assert "also.weight dim 1: 4 positions per unit (consumer, zeroed too)" in slices("a")
    assert slices("pool") == {f"{name}.weight dim 1: 6 positions per unit (producer)" for name in ("read", "also")}
    assert "head.weight dim 1: 1 position per unit (consumer, zeroed too)" in slices("single")
    (pool,) = [piece for piece in groups["pool (whole)"].slices if piece.tensor == "read.weight"]
    assert pool.index.tolist() == [list(range(11, 17))]


def test_costs_without_a_branch() -> None:
    """By hand: a structure's own operators, and its share of what reads the concatenation."""
    space = niwaki.search_space(Shuffled(), X, as_graph=True, erase=True)
    dense, left = space.cost(space.plan(erased(space, set()))), space.cost(space.plan(erased(space, {"a"})))
    own, depthwise, squeeze, excite, head = 4 * (3 + 1), 4 * (9 + 1), 4 * 3, 4 * (3 + 1), 4 * 4 * 2
    assert dense.params - left.params == own + depthwise + squeeze + excite + head
    assert dense.macs - left.macs == 2 * (4 * 3 * 64 + 4 * 9 * 64 + 4 * 3 + 3 * 4 + 4 * 4 * 2)


class Absent(TorchDispatchMode):
    """Zeros in place of some operands of the concatenations, which are counted."""

    def __init__(self, operands: set[tuple[int, int]]) -> None:
        super().__init__()
        self.operands, self.count = operands, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.cat.default:
            given = [x * 0 if (self.count, place) in self.operands else x for place, x in enumerate(args[0])]
            args, self.count = (given, *args[1:]), self.count + 1
        return func(*args, **(kwargs or {}))


class Plain(Branches):
    """Without anything but linear readers behind the concatenations."""

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = self.read(torch.cat([self.a(x), self.b(x), self.pool(x)], 1).clamp(max=2))
        return self.head(torch.cat([torch.sigmoid(self.gate(x)), self.single(x)], 1).mean((2, 3)))


def erased(space: SearchSpace, names: set[str]) -> np.ndarray[Any, Any]:
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        if group.structure is not None and space.structures[group.structure].name in names:
            keep[group.first] = False
    return keep


def test_an_absent_operand_is_zero_for_every_reader() -> None:
    """All valid sets of structures, by brute force: zeros are fed in at the concatenations."""
    torch.manual_seed(0)
    model, x = randomised(Plain().eval()).double(), X.double()
    space = niwaki.search_space(model, x, as_graph=True, erase=True)
    names = ["a", "b", "pool", "gate", "single"]
    assert sorted(one.name for one in space.structures if one.erasable) == sorted(names)
    place = dict(zip(names, [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)], strict=True))
    tried = 0
    for number in range(1, 4):
        for chosen in itertools.combinations(names, number):
            if {"a", "b", "pool"} <= set(chosen) or {"gate", "single"} <= set(chosen):
                with pytest.raises(NiwakiError, match="nothing would be left to join"):
                    space.plan(erased(space, set(chosen)))
                continue
            small = niwaki.cut(model, space.plan(erased(space, set(chosen))), as_graph=True, example_inputs=x)
            with torch.no_grad(), Absent({place[name] for name in chosen}):
                expected = model(x)
            assert torch.allclose(small.module()(x), expected, atol=1e-12), chosen
            tried += 1
    assert tried == 5 + 9 + 6


def refused(way: Callable[[Extra, Tensor, Tensor], Any], name: str = "a") -> str | None:
    """Why a branch cannot be erased, in a network that goes on like ``way`` from the stem and the concatenation."""

    class Net(Extra):
        def forward(self, x: Tensor) -> Any:
            x = torch.relu(self.stem(x))
            return way(self, x, torch.cat([self.a(x), self.pool(x)], 1))

    space = niwaki.search_space(Net(), X, as_graph=True, erase=True)
    (found,) = [one for one in space.structures if one.concatenated and one.name.partition(":")[0] == name]
    return found.refused


class Extra(Branches):
    """Layers from ten channels to ten, beside the others."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(6, 10, 1), nn.Conv2d(10, 10, 1)
        self.norm, self.last = nn.LayerNorm(10), nn.Linear(10, 2)


def test_what_stays_keeps_a_branch() -> None:
    tied = "what it is a part of is tied to something that stays"
    added = "what it is a part of is added to something that stays"
    assert refused(lambda net, h, y: net.last((net.first(h) + y).mean((2, 3)))) == added
    assert refused(lambda net, h, y: net.last((y + net.second(torch.relu(y))).mean((2, 3)))) == added
    assert refused(lambda net, h, y: net.last(torch.maximum(net.first(h), y).mean((2, 3)))) == tied
    assert refused(lambda net, h, y: net.last(torch.maximum(net.second(y), y).mean((2, 3)))) == tied
    out = refused(lambda net, h, y: y) or ""
    assert out.startswith("its part of the concatenation has to stay: it is an output of the model")
    normed = refused(lambda net, h, y: net.last(net.norm(y.mean((2, 3))))) or ""
    assert "has to stay: a norm averages over this dimension at test_concatenations.py" in normed
    assert refused(lambda net, h, y: net.last((net.first(h) * y).mean((2, 3)))) is None
    assert refused(lambda net, h, y: net.last(y.mean((2, 3)))) is None


def test_what_reads_without_weights() -> None:
    """A sum over channels: zeros of the branch's own are needed, and pooling has none."""

    def summed(net: Extra, h: Tensor, y: Tensor) -> Tensor:
        return torch.relu(y).sum(1)

    assert refused(summed) is None
    assert refused(summed, "pool") == "what reads the concatenation has no weights there, and it is not zero by itself"


def test_a_reader_that_a_pattern_keeps() -> None:
    space = niwaki.search_space(Branches(), X, ignored=["also.weight"], as_graph=True, erase=True)
    found = {one.name: one.refused or "" for one in space.structures}
    assert "it is ignored by the pattern 'also.weight'" in found["a"] and not found["single"]


def test_one_after_the_other() -> None:
    """Operands of one concatenation leave in two cuts: the second numbers them as the first has left them."""
    torch.manual_seed(0)
    model, x = randomised(Branches().eval()).double(), X.double()
    space = niwaki.search_space(model, x, as_graph=True, erase=True)
    first = space.plan(erased(space, {"a"}))
    small = niwaki.cut(model, first, as_graph=True, example_inputs=x)
    again = niwaki.search_space(small, erase=True)
    later = again.plan(erased(again, {"pool", "gate"}))
    both = composed(first, later)
    (edit,) = both.edits_of(Erase)
    assert [(one.structure, one.position) for one in edit.operands] == [("a", 0), ("pool", 2), ("gate", 1)]
    at_once = niwaki.cut(model, both, as_graph=True, example_inputs=x)
    assert torch.allclose(at_once.module()(x), niwaki.cut(small, later).module()(x), atol=1e-12)
    assert difference(first, both).edits_of(Erase)[0].operands == later.edits_of(Erase)[0].operands


def test_what_is_left_is_copied_where_it_is_written_to() -> None:
    """A concatenation with one operand left is no copy any more, unless something writes to it."""

    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9, 2)
            self.other = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            a = self.a(x)
            y = torch.cat([a, self.b(x)], 1)
            a.neg_()
            return self.head(y) + self.other(a)

    torch.manual_seed(0)
    report = check_erasing(Written(), torch.randn(5, 3), plans=4, as_graph=True)
    assert report.erasable == 4


def forgets_a_reader(parts: list[ReadPart]) -> list[ReadPart]:
    return parts[:-1]


def takes_the_first(parts: list[ReadPart]) -> list[ReadPart]:
    return [ReadPart(one.value, one.dim, np.arange(len(one.positions)), one.role) for one in parts]


@pytest.mark.parametrize("wrong", [forgets_a_reader, takes_the_first])
def test_wrong_slices_are_not_exact(
    monkeypatch: pytest.MonkeyPatch, wrong: Callable[[list[ReadPart]], list[ReadPart]]
) -> None:
    right = Reading._find_parts
    monkeypatch.setattr(Reading, "_find_parts", lambda self: {one: wrong(parts) for one, parts in right(self).items()})
    with pytest.raises((AssertionError, NiwakiError)):
        check_erasing(Plain(), X, plans=8, as_graph=True, least_erasable=5)


def test_a_part_that_is_said_to_come_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a look at where parts come from, pooling would be erased from what sums over channels."""

    class Summed(Branches):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.stem(x))
            y = torch.cat([self.a(x), self.pool(x)], 1)
            return self.head(self.gate.weight.sum() * torch.relu(y).sum(1).mean(2)[:, :4])

    monkeypatch.setattr(Reading, "read_bare", lambda self, structures: None)
    with pytest.raises(AssertionError):
        check_erasing(Summed(), X, plans=8, as_graph=True)


def test_a_layer_that_would_have_nothing_left() -> None:
    """Halves of a concatenation go to layers of their own: without one half, a layer would have no channel to read."""

    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.ModuleList(nn.Conv2d(3, 4, 1) for _ in range(4))
            self.second = nn.ModuleList(nn.Conv2d(8, 5, 1) for _ in range(2))
            self.head = nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            halves = torch.cat([layer(x) for layer in self.first], 1).split(8, 1)
            made = [layer(half) for layer, half in zip(self.second, halves, strict=True)]
            return self.head(torch.cat(made, 1).mean((2, 3)))

    torch.manual_seed(0)
    model, x = randomised(Halves().eval()).double(), X.double()
    space = niwaki.search_space(model, x, as_graph=True, erase=True)
    assert sorted(one.name for one in space.structures if one.erasable) == [f"first.{n}" for n in range(4)] + [
        "second.0",
        "second.1",
    ]
    with pytest.raises(NiwakiError, match=r"first.1 cannot be erased beside first.0: nothing would be left of 'second"):
        space.plan(erased(space, {"first.0", "first.1"}))
    space.plan(erased(space, {"first.0", "first.1", "second.0"}))
    trial = space.erasures.trial() if space.erasures is not None else None
    assert trial is not None
    numbers = {one.name: number for number, one in enumerate(space.structures)}
    assert trial.erase(numbers["first.0"]) is None
    assert "nothing would be left" in (trial.erase(numbers["first.1"]) or "")
    assert trial.erase(numbers["first.2"]) is None
    check_erasing(Halves(), X, plans=8, as_graph=True)


def test_a_size_that_only_a_structure_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """No width behind the concatenation can change, since its operands are outputs; its flat size can."""

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 5, 1), nn.Linear(9 * 64, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            a, b = self.a(x), self.b(x)
            return a, b, self.head(torch.cat([a, torch.relu(b)], 1).reshape(2, 576))

    torch.manual_seed(0)
    assert check_erasing(Flat(), X, plans=4, as_graph=True, least_erasable=2).erased > 0
    monkeypatch.setattr(gates, "_with_more", lambda known, _: known)
    with pytest.raises(AssertionError):
        check_erasing(Flat(), X, plans=4, as_graph=True)
