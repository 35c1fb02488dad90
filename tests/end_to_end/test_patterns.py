"""Patterns that break others: each comes out exact, or is refused with a reason that says so. Never silently wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from patterns import WIDTH, Do, Pattern, do, exact_or_refused, images, of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


def swapped(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return torch.cat([b, a], 1)


def halves(x: Tensor) -> Tensor:
    a, b = x.chunk(2, 1)
    return a + b


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups = 2

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)


class Pieces(nn.Module):
    """Max-out: the largest of every `pieces` channels."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces = 2

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.view(b, c // self.pieces, self.pieces, h, w).amax(2)


class Prefix(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.keep = 6

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.keep]


class Squeeze(nn.Module):
    def __init__(self, linear: bool) -> None:
        super().__init__()
        layer: Callable[[int, int], nn.Module] = nn.Linear if linear else lambda i, o: nn.Conv2d(i, o, 1)
        self.linear, self.down, self.up = linear, layer(WIDTH, 4), layer(4, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = x.mean((2, 3)) if self.linear else F.adaptive_avg_pool2d(x, 1)
        y = torch.sigmoid(self.up(torch.relu(self.down(y))))
        return x * (y[:, :, None, None] if self.linear else y)


class C2f(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.start, self.end = nn.Conv2d(WIDTH, 8, 1), nn.Conv2d(16, WIDTH, 1)
        self.inner = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.start(x).chunk(2, 1))
        for conv in self.inner:
            parts.append(parts[-1] + torch.relu(conv(parts[-1])))
        return self.end(torch.cat(parts, 1))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(WIDTH, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Instance(nn.Module):
    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(WIDTH, affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


class LastNorm(nn.Module):
    """A norm over the channels, moved to the end and back."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Flat(nn.Module):
    def __init__(self, view: bool) -> None:
        super().__init__()
        self.conv, self.head, self.view = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 2), view

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        return self.head(x.reshape(x.shape[0], -1) if self.view else x.flatten(1))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: Any) -> None:
        super().__init__()
        self.first, self.rnn = nn.Linear(3, 6), kind(6, 5, batch_first=True, **options)
        self.head = nn.Linear((options.get("proj_size") or 5) * (2 if self.rnn.bidirectional else 1), 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(self.first(x))[0][:, -1])


def refolded(x: Tensor) -> Tensor:
    return F.fold(F.unfold(x, 3, padding=1), x.shape[2:], 3, padding=1)


def sampled(x: Tensor) -> Tensor:
    grid = torch.linspace(-1, 1, 5, dtype=x.dtype)
    return F.grid_sample(x, torch.stack([grid, grid.flip(0)], -1).expand(len(x), 5, 5, 2), align_corners=False)


class Form(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.form, self.head = nn.Linear(3, 4), nn.Linear(3, 3), nn.Bilinear(4, 3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.form(torch.tanh(self.a(x)), self.b(x))))


class Codebook(nn.Module):
    """Each row is told by how far it is from known ones."""

    def __init__(self) -> None:
        super().__init__()
        self.start, self.known, self.head = nn.Linear(3, 6), nn.Parameter(torch.randn(7, 6)), nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cdist(self.start(x), self.known[None]))


class Merged(nn.Module):
    """Some rows are replaced by those of another tensor, as image features replace their placeholders."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.pixels, self.head = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.words(x))
        where = (torch.arange(x.shape[1]) < 2)[None, :, None].expand(len(x), -1, 1)
        return self.head(y.masked_scatter(where.expand_as(y), self.pixels(x[:, :2])))


class Packed(nn.Module):
    """torch's own multi-head attention, in a residual block without norm."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.start, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.norm = nn.LayerNorm(8) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.start(x))
        return self.head(x + self.attention(x, x, x, need_weights=False)[0]).mean(1)


class Encoder(nn.Module):
    """torch's own encoder, of which eval mode without gradients takes a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 12, 0.0, batch_first=True)
        self.start, self.encoder, self.head = nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.start(x)))


class Attention(nn.Module):
    def __init__(self, how: str, kv: int = 4, normed: bool = False, rotary: bool = False) -> None:
        super().__init__()
        self.heads, self.kv, self.head_dim, self.how, self.rotary = 4, kv, 4, how, rotary
        self.rep = 4 // kv
        self.start, self.proj, self.head = nn.Linear(3, 8), nn.Linear(16, 8), nn.Linear(8, 2)
        if how == "fused":
            self.qkv = nn.Linear(8, 48)
        else:
            self.q, self.k, self.v = nn.Linear(8, 16), nn.Linear(8, 4 * kv), nn.Linear(8, 4 * kv)
        self.q_norm = nn.LayerNorm(4) if normed else nn.Identity()
        self.k_norm = nn.LayerNorm(4) if normed else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        b, n, _ = x.shape
        if self.how == "fused":
            q, k, v = self.qkv(x).view(b, n, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        else:
            q = self.q(x).view(b, n, self.heads, self.head_dim).transpose(1, 2)
            k = self.k(x).view(b, n, self.kv, self.head_dim).transpose(1, 2)
            v = self.v(x).view(b, n, self.kv, self.head_dim).transpose(1, 2)
        q, k = self.q_norm(q), self.k_norm(k)
        if self.rotary:
            q, k = rotated(q), rotated(k)
        if self.rep > 1:
            k, v = (self._repeated(t, n) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v)
        return self.head(x + self.proj(y.transpose(1, 2).reshape(b, n, -1))).mean(1)

    def _repeated(self, x: Tensor, n: int) -> Tensor:
        b, kv, _, size = x.shape
        return x[:, :, None].expand(b, kv, self.rep, n, size).flatten(1, 2)


def rotated(x: Tensor) -> Tensor:
    n, size = x.shape[-2], x.shape[-1]
    angle = torch.arange(n)[:, None] * 0.5 ** torch.arange(0, size, 2)[None]
    cos, sin = torch.cat([angle, angle], -1).cos(), torch.cat([angle, angle], -1).sin()
    half = size // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], -1) * sin


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, False)
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        return self.head(x + self.down(F.gelu(self.up(x))))


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x)))


class Standardised(nn.Conv2d):
    """A subclass with a computed weight."""

    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.var((1, 2, 3), keepdim=True) + 1e-3).sqrt()
        return F.conv2d(x, w, self.bias, padding=1)


class Square(nn.Module):
    def forward(self, w: Tensor) -> Tensor:
        return w * w.abs()


def parametrized() -> nn.Module:
    conv = nn.Conv2d(WIDTH, WIDTH, 1)
    nn.utils.parametrize.register_parametrization(conv, "weight", Square())
    return conv


class LastLinear(nn.Module):
    """Linear layers on three dimensions, the last of them the head."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = F.gelu(self.up(x))
        return self.down(torch.cat([y[..., :0], y], -1))


class LastConcat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 6), nn.Linear(3, 4), nn.Linear(10, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), torch.sigmoid(self.b(x))], -1))


class Dimensions(nn.Module):
    """The same in one, two or three dimensions, and back."""

    def __init__(self, conv: Any, back: Any, batch: Any, groups: int) -> None:
        super().__init__()
        self.a, self.norm = conv(3, 8, 3, padding=1), batch(8)
        self.b, self.c = back(8, 8, 2, groups=groups), conv(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(torch.relu(self.norm(self.a(x)))))


class Frozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 2)
        self.a.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.relu(self.a(x)))


class Experts(nn.Module):
    """All experts answer, a router weighs them."""

    def __init__(self, stacked: bool) -> None:
        super().__init__()
        self.router, self.stacked, self.head = nn.Linear(3, 3), stacked, nn.Linear(4, 2)
        if stacked:
            self.up, self.down = nn.Parameter(torch.randn(3, 3, 8)), nn.Parameter(torch.randn(3, 8, 4))
        else:
            self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.stacked:
            y = torch.einsum("bd,edh->beh", x, self.up)
            y = torch.einsum("beh,eho->beo", F.silu(y), self.down)
        else:
            y = torch.stack([expert(x) for expert in self.experts], 1)
        return self.head((y * weights[:, :, None]).sum(1))


class Routed(nn.Module):
    """Each row goes to the expert of its own choice: control flow that depends on data."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(3, 2)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Linear(8, 2)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        choice = self.router(x).argmax(-1)
        y = torch.zeros(x.shape[0], 2, dtype=x.dtype)
        for number, expert in enumerate(self.experts):
            rows = (choice == number).nonzero().flatten()
            if len(rows):
                y = y.index_copy(0, rows, expert(x[rows]))
        return y


class Scan(nn.Module):
    """A diagonal state-space model, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 2)
        self.decay = nn.Parameter(torch.randn(6, 4))
        self.b, self.c = nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u, gate = F.silu(self.up(x)), self.gate(x)
        state = torch.zeros(x.shape[0], u.shape[2], 4, dtype=x.dtype)
        results = []
        for step in range(u.shape[1]):
            now = u[:, step]
            state = state * torch.exp(-self.decay.exp()) + now[:, :, None] * self.b(now)[:, None]
            results.append((state * self.c(now)[:, None]).sum(-1))
        return self.down(torch.stack(results, 1) * F.silu(gate))


class Adapter(nn.Module):
    """A linear layer with a low-rank addition."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.head = nn.Linear(3, 8), nn.Linear(8, 2)
        self.a, self.b = nn.Linear(3, 4, False), nn.Linear(4, 8, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.base(x) + 2.0 * self.b(self.a(x))))


class Einsums(nn.Module):
    """Attention and a MLP, written in einsum from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Parameter(torch.randn(6, 4, 3) * 0.3) for _ in range(3))
        self.o, self.start = nn.Parameter(torch.randn(4, 3, 6) * 0.3), nn.Linear(3, 6)
        self.up, self.down = nn.Parameter(torch.randn(6, 8) * 0.3), nn.Parameter(torch.randn(8, 2) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.start(x)
        q, k, v = (torch.einsum("bnd,dhe->bhne", x, w) for w in (self.q, self.k, self.v))
        weights = (torch.einsum("bhne,bhme->bhnm", q, k) * 0.5).softmax(-1)
        x = x + torch.einsum("bhnm,bhme,hed->bnd", weights, v, self.o)
        return torch.einsum("bnf,fo->bno", F.gelu(torch.einsum("bnd,df->bnf", x, self.up)), self.down)


class ManyInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, first: Any, second: Tensor | None = None) -> dict[str, Tensor]:
        x, y = first.values() if isinstance(first, dict) else first if second is None else (first, second)
        return {"out": self.c(torch.relu(self.a(x) + self.b(y)))}


class Branching(nn.Module):
    """Which way to go depends on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        if x.sum() > 0:
            h = h + torch.relu(self.b(h))
        return self.c(h)


class AsLinear(nn.Linear):
    """A subclass that calls its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


PATTERNS: dict[str, Pattern] = {
    "identity": Pattern(do(lambda x: x), least=8),
    "roll": Pattern(do(lambda x: x.roll(1, 1)), "rotated by a given number"),
    "flip": Pattern(do(lambda x: x.flip(1)), least=8),
    "index permutation": Pattern(do(lambda x: x[:, [3, 1, 0, 2, 7, 6, 5, 4]]), "looked up by index"),
    "cat with flipped self": Pattern(do(lambda x: torch.cat([x, x.flip(1)], 1), out=16), least=8),
    "chunk + add": Pattern(do(halves, out=4), least=4),
    "chunk + swap + cat": Pattern(do(swapped), least=8),
    "glu": Pattern(do(lambda x: F.glu(x, 1), out=4), least=4),
    "strided slice": Pattern(do(lambda x: x[:, ::2], out=4), least=4),
    "prefix slice by a literal": Pattern(do(lambda x: x[:, :6], out=6), "bound of a slice is written as the number 6"),
    "prefix slice by an attribute": Pattern(images(Prefix, out=6), least=6),
    "channel shuffle": Pattern(images(Shuffle), least=2),
    "repeat": Pattern(do(lambda x: x.repeat(1, 2, 1, 1), out=16), least=8),
    "repeat_interleave": Pattern(do(lambda x: x.repeat_interleave(2, 1), out=16), least=8),
    "pixel_shuffle": Pattern(do(lambda x: F.pixel_shuffle(x, 2), out=2), least=2),
    "pixel_unshuffle": Pattern(do(lambda x: F.pixel_unshuffle(x, 2), out=32), least=8),
    "normalize over channels": Pattern(do(lambda x: F.normalize(x, dim=1))),
    "max-out": Pattern(images(Pieces, out=4), least=4),
    "permute round trip": Pattern(do(lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)), least=8),
    "cat(x, x)": Pattern(do(lambda x: torch.cat([x, x], 1), out=16), least=8),
    "softmax over channels": Pattern(do(lambda x: x.softmax(1)), "depend on one another"),
    "mean over channels": Pattern(do(lambda x: x.mean(1, keepdim=True), out=1), least=8),
    "cumsum over channels": Pattern(do(lambda x: x.cumsum(1)), "a running sum"),
    "sort over channels": Pattern(do(lambda x: x.sort(1)[0]), "by value"),
    "sigmoid": Pattern(do(torch.sigmoid), least=8),
    "exp": Pattern(do(torch.exp), least=8),
    "added constant": Pattern(do(lambda x: x + 3.0), least=8),
    "layer norm": Pattern(images(lambda: LastNorm(nn.LayerNorm(WIDTH))), "a norm averages"),
    "rms norm": Pattern(images(lambda: LastNorm(nn.RMSNorm(WIDTH))), least=8),
    "group norm": Pattern(images(lambda: nn.GroupNorm(4, WIDTH)), least=4),
    "group norm of one group": Pattern(images(lambda: nn.GroupNorm(1, WIDTH)), "a norm averages"),
    "instance norm": Pattern(images(lambda: Instance(False)), least=8),
    "instance norm, affine": Pattern(images(lambda: Instance(True)), least=8),
    "grouped conv": Pattern(images(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=4)), least=4),
    "depthwise": Pattern(images(lambda: nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)), least=8),
    "depthwise times two": Pattern(images(lambda: nn.Conv2d(WIDTH, 16, 3, padding=1, groups=8), out=16), least=8),
    "resnext": Pattern(
        images(lambda: nn.Sequential(nn.Conv2d(8, 12, 1), nn.Conv2d(12, 12, 3, groups=3), nn.ReLU()), out=12),
        least=11,
    ),
    "squeeze-excite by conv": Pattern(images(lambda: Squeeze(False)), least=12),
    "squeeze-excite by linear": Pattern(images(lambda: Squeeze(True)), least=12),
    "c2f": Pattern(images(C2f), least=8),
    "flatten to linear": Pattern(lambda: (Flat(False), torch.randn(2, 3, 4, 4)), least=8),
    "reshape to linear": Pattern(lambda: (Flat(True), torch.randn(2, 3, 4, 4)), least=8),
    "bare scale": Pattern(images(Scale), least=8),
    "lstm": Pattern(of(lambda: Recurrent(nn.LSTM)), least=11),
    "two-way lstm of two layers": Pattern(of(lambda: Recurrent(nn.LSTM, num_layers=2, bidirectional=True)), least=11),
    "lstm with a projection": Pattern(
        of(lambda: Recurrent(nn.LSTM, proj_size=4)), "part of the computed function", least=6
    ),
    "gru": Pattern(of(lambda: Recurrent(nn.GRU)), least=11),
    "two-way gru of two layers": Pattern(of(lambda: Recurrent(nn.GRU, num_layers=2, bidirectional=True)), least=11),
    "plain recurrence": Pattern(of(lambda: Recurrent(nn.RNN)), least=11),
    "multi-head attention": Pattern(of(lambda: Packed(False)), least=2),
    "multi-head attention after a norm": Pattern(of(lambda: Packed(True)), "a norm averages", least=0),
    "fused qkv": Pattern(of(lambda: Attention("fused")), least=12),
    "split qkv": Pattern(of(lambda: Attention("split")), least=12),
    "grouped queries": Pattern(of(lambda: Attention("split", kv=2)), least=10),
    "one key head": Pattern(of(lambda: Attention("split", kv=1)), least=8),
    "q and k norm": Pattern(of(lambda: Attention("split", normed=True)), least=12),
    "rope": Pattern(of(lambda: Attention("split", rotary=True)), least=12),
    "tied embedding": Pattern(lambda: (Tied(), torch.randint(0, 9, (2, 5))), least=14),
    "called twice": Pattern(images(Twice), least=8),
    "weight norm": Pattern(images(lambda: parametrizations.weight_norm(nn.Conv2d(8, 8, 1))), least=21),
    "weight standardisation": Pattern(images(lambda: Standardised(8, 8, 3)), "mean", least=8),
    "spectral norm": Pattern(images(lambda: parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))), least=21),
    "parametrization": Pattern(images(parametrized), least=13),
    "linear as the last layer": Pattern(of(LastLinear), least=8),
    "dropout of channels": Pattern(images(lambda: nn.Dropout2d(0.0)), least=8),
    "unfold and fold": Pattern(images(lambda: Do(refolded)), least=8),
    "grid sampling": Pattern(images(lambda: Do(sampled)), least=8),
    "fourier transform of the image": Pattern(images(lambda: Do(lambda x: torch.fft.rfft2(x).abs())), least=8),
    "fourier transform of the channels": Pattern(images(lambda: Do(lambda x: torch.fft.fft(x, dim=1).abs())), "transf"),
    "bilinear form": Pattern(of(Form), least=13),
    "distances to a codebook": Pattern(of(Codebook), least=6),
    "rows merged by a mask": Pattern(of(Merged), least=6),
    "concat on the last dimension": Pattern(of(LastConcat), least=10),
    "one dimension": Pattern(
        lambda: (Dimensions(nn.Conv1d, nn.ConvTranspose1d, nn.BatchNorm1d, 1), torch.randn(2, 3, 6)), least=16
    ),
    "transposed in groups": Pattern(
        lambda: (Dimensions(nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d, 4), torch.randn(2, 3, 6, 6)), least=4
    ),
    "three dimensions": Pattern(
        lambda: (Dimensions(nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d, 2), torch.randn(2, 3, 4, 4, 4)), least=2
    ),
    "subclassed layer": Pattern(of(lambda: nn.Sequential(AsLinear(3, 8), nn.Linear(8, 2))), least=8),
    "frozen layer": Pattern(of(Frozen), least=8),
    "stacked experts": Pattern(of(lambda: Experts(True), lambda: torch.randn(4, 3)), least=12),
    "listed experts": Pattern(of(lambda: Experts(False), lambda: torch.randn(4, 3)), least=28),
    "routed experts": Pattern(of(Routed, lambda: torch.randn(8, 3)), least=16),
    "state-space scan": Pattern(of(Scan), least=6),
    "lora": Pattern(of(Adapter), least=12),
    "einsum everywhere": Pattern(of(Einsums), least=18),
    "two inputs": Pattern(of(ManyInputs, lambda: (torch.randn(2, 3), torch.randn(2, 3))), least=8),
    "inputs in a dict": Pattern(
        of(ManyInputs, lambda: {"first": {"x": torch.randn(2, 3), "y": torch.randn(2, 3)}}), least=8
    ),
    "inputs in a list": Pattern(of(ManyInputs, lambda: ([torch.randn(2, 3), torch.randn(2, 3)],)), least=8),
    "channels_last in the middle": Pattern(do(lambda x: x.contiguous(memory_format=torch.channels_last)), least=8),
    "torch's own encoder": Pattern(of(Encoder), "a norm averages", least=12),
    "data-dependent control flow": Pattern(of(Branching, lambda: [torch.ones(2, 3), -torch.ones(2, 3)]), least=8),
}


# What is known to break other libraries, in the words in which it is usually told, and the patterns that try it.
LISTED: dict[str, tuple[str, ...]] = {
    "identity": ("identity",),
    "roll": ("roll",),
    "flip": ("flip",),
    "index permutation": ("index permutation",),
    "cat with flipped self": ("cat with flipped self",),
    "chunk + add": ("chunk + add",),
    "chunk + swap + cat": ("chunk + swap + cat",),
    "GLU": ("glu",),
    "strided slice": ("strided slice",),
    "prefix slice": ("prefix slice by a literal", "prefix slice by an attribute"),
    "channel shuffle": ("channel shuffle",),
    "repeat": ("repeat",),
    "repeat_interleave": ("repeat_interleave",),
    "pixel_shuffle, pixel_unshuffle": ("pixel_shuffle", "pixel_unshuffle"),
    "F.normalize over channels": ("normalize over channels",),
    "max-out view": ("max-out",),
    "permute round trip": ("permute round trip",),
    "cat(x, x)": ("cat(x, x)",),
    "softmax, mean, cumsum, sort over channels": (
        "softmax over channels",
        "mean over channels",
        "cumsum over channels",
        "sort over channels",
    ),
    "sigmoid, exp, added constant between producer and consumer": ("sigmoid", "exp", "added constant"),
    "LayerNorm, RMSNorm over the pruned width": ("layer norm", "rms norm"),
    "GroupNorm, InstanceNorm over the pruned width": (
        "group norm",
        "group norm of one group",
        "instance norm",
        "instance norm, affine",
    ),
    "grouped convolution": ("grouped conv", "depthwise", "depthwise times two", "resnext"),
    "squeeze-excite": ("squeeze-excite by conv", "squeeze-excite by linear"),
    "C2f": ("c2f",),
    "reshape(B, -1) to linear": ("flatten to linear", "reshape to linear"),
    "bare parameter as a scale": ("bare scale",),
    "LSTM, GRU": (
        "lstm",
        "two-way lstm of two layers",
        "lstm with a projection",
        "gru",
        "two-way gru of two layers",
        "plain recurrence",
    ),
    "nn.MultiheadAttention": ("multi-head attention", "multi-head attention after a norm", "torch's own encoder"),
    "fused and split qkv": ("fused qkv", "split qkv"),
    "GQA, MQA": ("grouped queries", "one key head"),
    "q/k norm": ("q and k norm",),
    "RoPE": ("rope",),
    "tied embedding and head": ("tied embedding",),
    "shared modules called twice": ("called twice",),
    "weight norm": ("weight norm",),
    "weight standardisation": ("weight standardisation",),
    "spectral norm": ("spectral norm",),
    "parametrizations": ("parametrization",),
    "3-D linear as last layer": ("linear as the last layer",),
    "concat on the last dimension": ("concat on the last dimension",),
    "Conv1d, Conv3d": ("one dimension", "three dimensions"),
    "ConvTranspose with groups": ("transposed in groups",),
    "subclassed layers": ("subclassed layer",),
    "frozen layers": ("frozen layer",),
    "stacked and listed experts": ("stacked experts", "listed experts", "routed experts"),
    "state-space scan": ("state-space scan",),
    "LoRA adapters": ("lora",),
    "einsum everywhere": ("einsum everywhere",),
    "dict, list and multiple inputs": ("two inputs", "inputs in a dict", "inputs in a list"),
    "data-dependent control flow": ("data-dependent control flow",),
}


def test_every_known_pattern_is_tried() -> None:
    assert {name for names in LISTED.values() for name in names} <= set(PATTERNS)


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern_is_exact_or_refused(name: str) -> None:
    exact_or_refused(name, PATTERNS[name])
