"""Operators that call functions are looked into: `torch.cond`, and flexible attention."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
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


class Grouped(nn.Module):
    """Attention in which ``heads // keys`` queries share a key, by flexible attention, ``how`` tells its options."""

    def __init__(self, heads: int, keys: int, **how: Any) -> None:
        super().__init__()
        self.heads, self.keys, self.size, self.how = heads, keys, 4, how
        self.q, self.k = nn.Linear(6, heads * 4), nn.Linear(6, keys * 4)
        self.v, self.o = nn.Linear(6, keys * 4), nn.Linear(heads * 4, 6)

    def forward(self, x: Tensor) -> Tensor:
        from torch.nn.attention.flex_attention import flex_attention

        rows, length, _ = x.shape
        q = self.q(x).view(rows, length, self.heads, self.size).transpose(1, 2)
        k, v = (f(x).view(rows, length, self.keys, self.size).transpose(1, 2) for f in (self.k, self.v))
        y = flex_attention(q, k, v, enable_gqa=self.heads != self.keys, **self.how)
        if isinstance(y, tuple):
            y = y[0] * y[1].sigmoid()[..., None]
        return self.o(y.transpose(1, 2).reshape(rows, length, self.heads * self.size))


def block_mask() -> Any:
    from torch.nn.attention.flex_attention import create_block_mask

    return create_block_mask(lambda b, h, i, j: i >= j, None, None, 8, 8, device="cpu")


class Sloped(nn.Module):
    """A function of scores that has a number for each head."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Grouped(4, 4, score_mod=lambda score, b, h, i, j: score - self.slopes[h] * (i - j))
        self.slopes = nn.Buffer(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x)


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


@pytest.mark.parametrize(("heads", "keys"), [(4, 4), (8, 2), (4, 2)])
@pytest.mark.parametrize("how", ["plain", "scores", "mask", "sums"])
def test_heads_of_flexible_attention(heads: int, keys: int, how: str) -> None:
    torch.manual_seed(0)
    options: dict[str, dict[str, Any]] = {
        "plain": {},
        "scores": {"score_mod": lambda score, b, h, i, j: score + (i - j) * 0.1, "scale": 0.3},
        "mask": {"block_mask": block_mask()} if how == "mask" else {},
        "sums": {"return_lse": True},
    }
    net = Grouped(heads, keys, **options[how])
    report = check_model(net, torch.randn(2, 8, 6), train=False)
    assert report.units == keys
    assert report.forward < 1e-10


def test_heads_that_a_function_of_scores_knows_by_number_stay() -> None:
    space = niwaki.search_space(Sloped(), torch.randn(2, 8, 6))
    assert not space.num_units


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
