"""Modules of the replay that stand for a kind each. Their lines are quoted in what is stored."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


class Temporal(nn.Module):
    """Convolutions behind weight norms in residual blocks, and one that makes the sequence longer."""

    def __init__(self) -> None:
        super().__init__()
        norm = parametrizations.weight_norm
        self.first = norm(nn.Conv1d(3, 8, 3, padding=1))
        self.blocks = nn.ModuleList(norm(nn.Conv1d(8, 8, 3, padding=2**i, dilation=2**i)) for i in range(2))
        self.longer = norm(nn.ConvTranspose1d(8, 6, 4, 2, 1))
        self.last = norm(nn.Conv1d(6, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.last(torch.relu(self.longer(torch.relu(x))))


class Complex(nn.Module):
    """Complex matrices and a complex scale before real layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Linear(5, 8, dtype=torch.complex64)
        self.scale = nn.Parameter(torch.randn(8, dtype=torch.complex64))
        self.two = nn.Linear(8, 6, bias=False, dtype=torch.complex64)
        self.three, self.out = nn.Linear(6, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.two(self.scale * self.one(x.to(torch.complex64)))
        return self.out(torch.relu(self.three(x.abs())))


class GroupedQueries(nn.Module):
    """Six queries for two keys in a residual stream behind a norm whose width can shrink."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.keys, self.size = 6, 2, 4
        self.embed, self.norm, self.head = nn.Embedding(11, 12), nn.RMSNorm(12), nn.Linear(12, 5)
        self.q, self.k, self.v = nn.Linear(12, 24), nn.Linear(12, 8), nn.Linear(12, 8)
        self.o = nn.Linear(24, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm(x)
        rows, length, _ = y.shape
        q = self.q(y).view(rows, length, self.heads, self.size).transpose(1, 2)
        k, v = (layer(y).view(rows, length, self.keys, self.size).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (part.repeat_interleave(self.heads // self.keys, dim=1) for part in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(x + self.o(y.transpose(1, 2).reshape(rows, length, self.heads * self.size)))


class Sized(nn.Module):
    """Sizes in attributes, a list in a dict, a product, a quotient; and one that is written in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width, self.table = 4, 24, {"sizes": [6]}
        self.first, self.last = nn.Linear(5, 24), nn.Linear(24, 8)
        self.more, self.out = nn.Linear(8, 8), nn.Linear(8, 3)
        self.gate = nn.Parameter(torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x).tanh().view(len(x), self.heads, self.table["sizes"][0]) * self.gate
        y = y.reshape(len(x), self.width // self.heads * self.heads)
        y = self.last(y) + self.last(y).view(-1, 2, 4).flip(1).reshape(-1, 8)
        return self.out(torch.relu(self.more(torch.relu(y))))


class Repaired(nn.Module):
    """Root mean squares with an epsilon, with a weight and without one: a cut has to rescale."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(12)), 1e-2
        self.embed, self.up, self.down, self.head = (
            nn.Embedding(11, 12),
            nn.Linear(12, 20),
            nn.Linear(20, 12),
            nn.Linear(12, 3),
        )

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))
        x = x + self.down(torch.relu(self.up(y)))
        return self.head(x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class Normed(nn.Module):
    """A residual branch behind a LayerNorm, whose width can leave only inexactly."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 3)
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 20), nn.Linear(20, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(x + self.down(torch.relu(self.up(self.norm(x)))))


class Experts(nn.Module):
    """Each token goes to two of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.gate, self.head = nn.Linear(5, 12), nn.Linear(12, 4, bias=False), nn.Linear(12, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(12, 10), nn.ReLU(), nn.Linear(10, 12)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x)) * 3
        weight, chosen = self.gate(x).softmax(-1).topk(2, -1)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            row, place = torch.where(chosen == number)
            if len(row):
                out.index_add_(0, row, expert(x[row]) * weight[row, place, None])
        return self.head(x + out)


class Stacked(nn.Module):
    """All experts in one tensor, chosen by number, with gates in two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.gate, self.head = nn.Linear(5, 12), nn.Linear(12, 4, bias=False), nn.Linear(12, 3)
        self.up, self.down = nn.Parameter(torch.randn(4, 12, 20)), nn.Parameter(torch.randn(4, 10, 12))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.start(x)) * 3
        chosen = self.gate(x).argmax(-1)
        a, b = torch.bmm(x[:, None], self.up[chosen]).squeeze(1).chunk(2, -1)
        return self.head(x + torch.bmm((a.sigmoid() * b)[:, None], self.down[chosen]).squeeze(1))


class Sequences(nn.Module):
    """A bidirectional LSTM of two layers, a GRU, and a cell in a loop."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.lstm = nn.LSTM(6, 8, 2, batch_first=True, bidirectional=True)
        self.gru, self.cell = nn.GRU(16, 10, batch_first=True), nn.GRUCell(10, 7)
        self.head = nn.Linear(7, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.gru(self.lstm(self.embed(tokens))[0])[0]
        state = x.new_zeros(len(x), 7)
        for now in x.unbind(1):
            state = self.cell(now, state)
        return self.head(state)


class Pinned(nn.Module):
    """What cannot leave: a returned width, a sorted one, a softmaxed one, one compared with a number in the source."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.three, self.four = (nn.Linear(6, 6) for _ in range(4))
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.one(x).sort(-1).values
        y = self.two(x).softmax(-1)
        z = self.three(y)
        z = z + 1 if z.shape[-1] == 6 else z
        return self.four(torch.relu(z)), y
