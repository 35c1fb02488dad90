"""The built-in super-networks: their shapes, and the structures that one counts by hand."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import nn

import niwaki
from niwaki.core.structures import Structure
from niwaki.networks import ImageTask, build_model
from niwaki.networks.cells import CellNetwork
from niwaki.networks.demo_supernet import DemoSupNet
from niwaki.networks.stacked_unets import StackedUnets
from niwaki.networks.super_resnet import SuperResNet


@pytest.mark.parametrize("name", ["superresnet", "unets", "cells", "supernet"])
@pytest.mark.parametrize(("channels", "size"), [(1, (8, 8)), (3, (11, 14))])
def test_shapes_and_gradients(name: str, channels: int, size: tuple[int, int]) -> None:
    """Odd sides too; every parameter gets a gradient, also where something is written in place."""
    torch.manual_seed(0)
    model = build_model(name, ImageTask(5, channels, size), width=0.25)
    scores = model(torch.randn(2, channels, *size))
    assert scores.shape == (2, 5)
    scores.square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def listed(model: nn.Module, side: int = 8) -> dict[str, Structure]:
    space = niwaki.search_space(model, torch.randn(2, 2, side, side), erase=True)
    return {one.name: one for one in space.structures}


def test_a_super_resnet() -> None:
    """Each layer has three kernels and a sum of two; each block its branch and its shortcut."""
    found = listed(SuperResNet(3, 2, (4, 6), (1, 2)))
    assert len(found) == 3 * (2 * (3 + 1) + 2)
    assert all(one.erasable for one in found.values())
    assert found["stages.1.0.shortcut"].params == 4 * 6 + 2 * 6
    seven = found["stages.0.0.second.branches.2"]
    assert (seven.params, seven.macs) == (4 * 4 * 49 + 8, 2 * 4 * 4 * 49 * 64)
    half = listed(SuperResNet(3, 2, (4, 6), (1, 2), stride=2))["stages.0.0.second.branches.2"]
    assert (half.params, 4 * half.macs) == (seven.params, seven.macs)
    block = found["stages.1.1"]
    assert block.params == sum(6 * 6 * k * k + 12 for k in (3, 5, 7)) * 2
    assert list(found)[seven.inside or 0] == "stages.0.0"


def test_blocks_of_a_super_resnet() -> None:
    """Any of the four blocks of a stage can vanish, and so can all of them; or the shortcut beside one."""
    found = listed(SuperResNet(3, 2, (4,), (4,), kernels=(3,)))
    names = [name for block in range(4) for name in (f"stages.0.{block}", f"stages.0.{block}.shortcut")]
    assert [name for name, one in found.items() if one.erasable] == names


def test_stacked_unets() -> None:
    """At each of two resolutions two ways down and two ways up; a U-Net itself; where skips are added, they and what
    comes from below as well."""
    found = listed(StackedUnets(3, 2, (4, 6, 8)), 9)
    added = [one for name, one in found.items() if name.startswith("unets.0")]
    concatenated = [one for name, one in found.items() if name.startswith("unets.1")]
    assert len(added) == 2 * 2 + 2 * 2 + 2 * 2 + 1
    assert all(one.erasable for one in added)
    lines = Counter(one.location.line for one in concatenated if one.erasable)
    assert len(concatenated) >= 2 * 2 + 2 * 2 + 1 and max(lines.values()) >= 4
    whole = found["unets.0"]
    assert whole.params == sum(p.numel() for p in StackedUnets(3, 2, (4, 6, 8)).unets[0].parameters())


def test_cells() -> None:
    """An edge has four candidates with operators, and three partial sums. Nodes add up two and three edges."""
    found = list(listed(CellNetwork(3, 2, 4, cells=1, nodes=2, halving=())).values())
    by_module = Counter(one.name.removeprefix("cells.0.edges.").split(".", 2)[-1] for one in found)
    assert {by_module[name] for name in ("separable", "dilated", "maximum", "separable..dilated")} == {2 + 3}
    names = {one.name: one for one in found}
    for edge in ("0.0", "0.1", "1.0", "1.1", "1.2"):
        for candidate in ("separable", "dilated", "average.1"):
            assert names[f"cells.0.edges.{edge}.{candidate}"].erasable
    assert names["cells.0.edges.0.0.separable"].params == 4 * 9 + 4 * 4 + 8
    assert len(found) >= 5 * (4 + 3) + 2 + 4


def test_the_smallest() -> None:
    """Two parallel convolutions and their sum, the chain beside it, the residual block."""
    found = listed(DemoSupNet(3, 2, 4))
    assert {name for name, one in found.items() if one.erasable} >= {
        "narrow",
        "wide",
        "narrow..wide",
        "chain",
        "residual",
    }
    assert found["chain"].params == (4 * 4 * 9 + 4) + 8 + (4 * 4 + 4)
    assert found["narrow..wide"].params == found["narrow"].params + found["wide"].params
