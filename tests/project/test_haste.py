"""The example of HASTE: its formula on a case computed by hand, and where it is exact."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

HASTE: Any = runpy.run_path(str(Path(__file__).parents[2] / "examples/haste.py"))


def test_a_bucket_by_hand() -> None:
    """Channels 1 and 3 of 1, 3, 10 in one bucket: (w1 + w2) (1 + 3) / 2 + 10 w3."""
    conv = nn.Conv2d(3, 1, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([2.0, 5.0, 1.0]).view(1, 3, 1, 1))
    merging = HASTE["MergingConv2d"](conv, bits=4)
    merging.buckets = lambda image: torch.tensor([0, 0, 1])
    image = torch.tensor([1.0, 3.0, 10.0]).view(1, 3, 1, 1)
    assert float(merging(image).detach()) == (2 + 5) * (1 + 3) / 2 + 10
    assert (merging.given, merging.read) == (3, 2)


def test_it_is_exact_for_channels_that_are_equal() -> None:
    conv = nn.Conv2d(6, 4, 3, stride=2, padding=1)
    x = torch.randn(5, 3, 8, 8).repeat_interleave(2, dim=1)
    merging = HASTE["MergingConv2d"](conv, bits=24)
    torch.testing.assert_close(merging(x), conv(x))
    assert merging.given == 5 * 6 and merging.read == 5 * 3


def test_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="has 2 groups, whose channels cannot be merged with one another"):
        HASTE["MergingConv2d"](nn.Conv2d(4, 4, 1, groups=2), bits=4)
