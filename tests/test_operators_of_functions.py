"""Operators that call functions are looked into: `torch.cond`, and flexible attention."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import Tensor, nn

import niwaki
from niwaki.testing import check_model


class Flexible(nn.Module):
    """Attention to what is near, written as a function of places."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.first, self.qkv = 2, nn.Linear(5, 8), nn.Linear(8, 24)
        self.out, self.head = nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        x = torch.relu(self.first(x))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).split(8, -1))
        y = flex_attention(q, k, v, score_mod=lambda score, b, h, i, j: score - (i - j).abs() * 0.1, scale=0.5)
        assert isinstance(y, Tensor)
        return self.head(x + self.out(y.transpose(1, 2).flatten(2)))


class Either(nn.Module):
    """Two ways, between which a tensor decides."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(6, 5), nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        made = torch.cond(x.sum() > 0, lambda t: torch.tanh(self.a(t)), lambda t: self.b(t), (h,))
        assert isinstance(made, Tensor)
        return self.head(made)


def test_flexible_attention() -> None:
    torch.manual_seed(0)
    report = check_model(Flexible(), torch.randn(2, 6, 5), train=False)
    assert report.units >= 8


def test_both_ways_of_a_condition() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 3)
    space = niwaki.search_space(Either(), [x, -x])
    assert [group.units for group in space.groups] == [6, 5]
    assert check_model(Either(), [x, -x], train=False).forward < 1e-10


def test_in_a_process_that_has_not_compiled_anything() -> None:
    """The compiler is loaded by the network, while it is looked at."""
    code = "; ".join(
        [
            "import sys, torch, niwaki",
            "from test_operators_of_functions import Either",
            "assert 'torch._dynamo' not in sys.modules",
            "x = torch.rand(4, 3)",
            "print(niwaki.search_space(Either(), [x, -x]).num_units)",
        ]
    )
    paths = [str(path) for path in sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {paths!r}; {code}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "11", done.stderr[-2000:]
