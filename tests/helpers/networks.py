"""Random small networks, in the many ways in which people write the same things.

A network is described by plain data (printed by hypothesis when it fails): `Image` or `Tokens`, with a list of blocks,
each a tuple of its name and its options. `build` makes the module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.rules.vision import stand_in

Block = tuple[Any, ...]
BATCH, SIDE, LENGTH, VOCABULARY = 2, 4, 5, 11


@dataclass(frozen=True)
class Image:
    """[2, 3, 4, 4] through blocks into a head."""

    width: int
    blocks: tuple[Block, ...]
    head: str


@dataclass(frozen=True)
class Tokens:
    """[2, 5] token numbers through an embedding and blocks into a head."""

    width: int
    start: str
    blocks: tuple[Block, ...]
    head: str


# ------------------------------------------------------------------------------------------------ what is in a block


class Shifted(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5


class Exp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (-x.abs()).exp()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": nn.ReLU,
    "relu_": lambda: nn.ReLU(inplace=True),
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "hardswish_": lambda: nn.Hardswish(inplace=True),
    "leaky": lambda: nn.LeakyReLU(0.1),
    "logsigmoid": nn.LogSigmoid,
    "dropout": lambda: nn.Dropout(0.1),
    "shifted": Shifted,
    "exp": Exp,
}


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of an image, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(variance + 1e-3) * self.weight[:, None, None] + self.bias[:, None, None]


def _norm(name: str, width: int) -> nn.Module:
    groups = next(g for g in (4, 3, 2, 1) if width % g == 0)
    return {
        "none": lambda: nn.Identity(),
        "batch": lambda: nn.BatchNorm2d(width),
        "batch_plain": lambda: nn.BatchNorm2d(width, affine=False),
        "batch_now": lambda: nn.BatchNorm2d(width, track_running_stats=False),
        "group": lambda: nn.GroupNorm(groups, width),
        "instance": lambda: nn.InstanceNorm2d(width, affine=True),
        "channel": lambda: ChannelNorm(width),
    }[name]()


class Conv(nn.Sequential):
    def __init__(self, width: int, out: int, kernel: int, bias: bool, norm: str, act: str, groups: int = 1) -> None:
        conv = nn.Conv2d(width, out, kernel, padding=kernel // 2, bias=bias, groups=groups)
        super().__init__(conv, _norm(norm, out), ACTIVATIONS[act]())


class Residual(nn.Module):
    def __init__(self, width: int, body: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.how = body, how
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5)) if how == "scaled" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "in_place":
            y = self.body(x.clone()) * 1.5  # or a gradient would miss what is overwritten
            y += x
            return y
        if self.how == "onto":
            x = x.clone()
            x += self.body(x.clone())
            return x
        y = self.body(x.clone())
        return x + self.scale * y if self.scale is not None else torch.relu(x + y)


class Concat(nn.Module):
    def __init__(self, body: nn.Module, how: str) -> None:
        super().__init__()
        self.body, self.how = body, how

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x.clone())
        parts = {"after": [x, y], "before": [y, x], "twice": [x, y, x], "flipped": [x.flip(1), y]}
        return torch.cat(parts[self.how], 1)


class Shuffle(nn.Module):
    def __init__(self, width: int, groups: int, how: str) -> None:
        super().__init__()
        self.groups, self.per, self.how = groups, width // groups, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "torch":
            return F.channel_shuffle(x, self.groups)
        b, c, h, w = x.shape
        if self.how == "attributes":
            x = x.view(b, self.groups, self.per, h, w)
        elif self.how == "computed":
            x = x.view(b, self.groups, c // self.groups, h, w)
        else:
            x = x.unflatten(1, (self.groups, -1))
        return x.transpose(1, 2).reshape(b, -1, h, w) if self.how != "given" else x.transpose(1, 2).reshape(b, c, h, w)


class Literal(nn.Module):
    """Numbers in the source."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.view(x.shape[0], 2, 4, x.shape[2], x.shape[3]).amax(1)


class Squeeze(nn.Module):
    def __init__(self, width: int, inner: int, how: str) -> None:
        super().__init__()
        self.how = how
        layer = nn.Linear if how == "linear" else lambda i, o: nn.Conv2d(i, o, 1)
        self.down, self.up = layer(width, inner), layer(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "linear":
            y = x.mean((2, 3))
            b, c = y.shape
            y = torch.sigmoid(self.up(torch.relu(self.down(y)))).view(b, c, 1, 1)
            return x * y.expand_as(x)
        y = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.up(F.relu(self.down(y), inplace=True)))


class Gate(nn.Module):
    def __init__(self, width: int, out: int, how: str) -> None:
        super().__init__()
        self.conv, self.how, self.out = nn.Conv2d(width, 2 * out, 1), how, out

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        if self.how == "glu":
            return F.glu(x, 1)
        if self.how == "chunk":
            a, b = x.chunk(2, dim=1)
        elif self.how == "split":
            a, b = x.split(self.out, dim=1)
        elif self.how == "sizes":
            a, b = x.split([self.out, self.out], dim=1)
        elif self.how == "half":
            a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        else:
            a, b = x[:, : self.out], x[:, self.out :]
        return a * torch.sigmoid(b) if self.how != "half" else a + b


class Parts(nn.Module):
    """One part goes through a body, the other past it."""

    def __init__(self, width: int, body: nn.Module, first: int, how: str) -> None:
        super().__init__()
        self.first, self.rest, self.body, self.how = first, width - first, body, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "sizes":
            a, b = x.split((self.first, self.rest), dim=1)
        elif self.how == "slices":
            a, b = x[:, : self.first], x[:, self.first :]
        elif self.how == "narrow":
            a, b = x.narrow(1, 0, self.first), x.narrow(1, self.first, self.rest)
        elif self.how == "negative":
            a, b = x[:, : -self.rest], x[:, -self.rest :]
        elif self.how == "tensor_split":
            a, b = x.tensor_split([self.first], dim=1)
        else:
            x = x.clone()
            x[:, : self.first] = self.body(x[:, : self.first].clone())
            return x
        return torch.cat([b, self.body(a.clone())], 1)


POOLS = ["max", "avg", "nearest", "bilinear", "padded", "reflected", "strided", "round", "turned", "back"]


class Pool(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "max":
            return F.max_pool2d(x, 3, 1, 1)
        if self.how == "avg":
            return F.avg_pool2d(x, 3, 1, 1)
        if self.how == "padded":
            return F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1)
        if self.how == "reflected":
            return F.max_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, 1)
        if self.how == "round":
            return F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="circular"), 3, 1)
        if self.how == "turned":
            return torch.rot90(x, 1, (2, 3)) + x
        if self.how == "back":
            y, places = F.max_pool2d(x, 2, return_indices=True)
            return F.max_unpool2d(y * 0.5, places, 2)
        if self.how == "strided":  # of another memory format, which torch restores
            return x * F.adaptive_avg_pool2d(x.contiguous(memory_format=torch.channels_last), 1)
        return F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode=self.how)


class Twice(nn.Module):
    """One module, called twice."""

    def __init__(self, width: int, act: str) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(width, width, 1), ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.act(self.conv(x)))


class Scale(nn.Module):
    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.gamma, self.beta, self.how = nn.Parameter(torch.rand(width, 1, 1)), nn.Parameter(torch.rand(width)), how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "mul":
            return x * self.gamma
        if self.how == "in_place":
            return x.clone().mul_(self.gamma).add_(self.beta[None, :, None, None])
        if self.how == "view":
            return x * self.gamma + self.beta.view(1, -1, 1, 1)
        return torch.addcmul(self.beta.reshape(-1, 1, 1).expand(-1, x.shape[2], x.shape[3]), x, torch.tanh(self.gamma))


class OverChannels(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "spatial":
            return x * torch.sigmoid(torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1).sum(1, True))
        if self.how == "softmax":
            return x.softmax(1)
        if self.how == "normalize":
            return F.normalize(x, dim=1)
        if self.how == "roll":
            return x.roll(1, 1)
        if self.how == "sum":
            return x * x.tanh().sum(1, keepdim=True)
        return x + x.cumsum(1)


class Swap(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        if self.how == "swap":
            return torch.cat([b, a], 1)
        if self.how == "add":
            return a + b
        return torch.stack([a, b], 2).flatten(1, 2)


class ChannelsLast(nn.Module):
    """As in ConvNeXt: linear layers on the last dimension."""

    def __init__(self, width: int, inner: int, norm: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.gamma = nn.Parameter(torch.rand(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.permute(0, 2, 3, 1)
        y = self.gamma * self.down(F.gelu(self.up(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)


class Branches(nn.Module):
    def __init__(self, bodies: list[nn.Module], how: str) -> None:
        super().__init__()
        self.bodies, self.how = nn.ModuleList(bodies), how

    def forward(self, x: Tensor) -> Tensor:
        results = [body(x.clone()) for body in self.bodies]
        if self.how == "stack":
            return torch.stack(results).sum(0)
        if self.how == "mean":
            return torch.stack(results, 1).mean(1)
        return sum(results[1:], results[0]) if self.how == "sum" else results[0] * torch.sigmoid(results[-1])


class PixelShuffled(nn.Module):
    def __init__(self, width: int, out: int, back: bool) -> None:
        super().__init__()
        self.conv, self.back = nn.Conv2d(width, 4 * out, 1), back
        self.last = nn.Conv2d(4 * out, out, 1) if back else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.pixel_shuffle(self.conv(x), 2)
        return self.last(F.pixel_unshuffle(torch.relu(y), 2)) if self.back else F.avg_pool2d(y, 2)


class Transposed(nn.Module):
    def __init__(self, width: int, out: int, groups: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose2d(width, out, 3, padding=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Standardised(nn.Module):
    """A convolution whose weight is computed."""

    def __init__(self, width: int, out: int, how: str) -> None:
        super().__init__()
        self.conv, self.how = nn.Conv2d(width, out, 3, padding=1), how
        self.g = nn.Parameter(torch.rand(out, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        w = self.conv.weight
        if self.how == "standard":
            w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-2)
        elif self.how == "normed":
            w = self.g * w / (w.flatten(1).norm(dim=1)[:, None, None, None] + 1e-2)
        else:
            w = torch.tanh(w) + 0.1
        return F.conv2d(x, w, self.conv.bias, padding=1)


class Patches(nn.Module):
    """What is cut out of an image, and put back."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how, self.mix = how, nn.Linear(SIDE * SIDE, SIDE * SIDE)

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "fold":
            return F.fold(self.mix(F.unfold(x, 3, padding=1)), x.shape[2:], 3, padding=1)
        if self.how == "tiles":
            return F.fold(F.gelu(F.unfold(x, 2, stride=2)), x.shape[2:], 2, stride=2)
        tiles = x.unfold(2, 2, 2).unfold(3, 2, 2)
        return F.interpolate(tiles.amax((-2, -1)), x.shape[2:], mode="bicubic")


class Warped(nn.Module):
    """Sampled where the image itself says."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.where = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        grid = torch.tanh(self.where(x)).permute(0, 2, 3, 1)
        return x + F.grid_sample(x, grid, padding_mode="border", align_corners=False)


class Waves(nn.Module):
    """Fourier transforms over the image or the channels."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how = how
        self.filter = nn.Parameter(torch.randn(width, SIDE, SIDE // 2 + 1, 2) * 0.3) if how == "filter" else None

    def forward(self, x: Tensor) -> Tensor:
        if self.filter is not None:
            made = torch.fft.rfft2(x, norm="ortho") * torch.view_as_complex(self.filter)
            return torch.fft.irfft2(made, s=x.shape[2:], norm="ortho")
        if self.how == "channels":
            return torch.fft.fft(x, dim=1, norm="ortho").real
        return torch.view_as_real(torch.fft.fft(x, dim=2, norm="ortho")).sum(-1)


class Reweighted(nn.Sequential):
    """A convolution whose weight torch computes."""

    def __init__(self, width: int, out: int, how: str) -> None:
        conv = nn.Conv2d(width, out, 3, padding=1)
        made = {
            "weight": lambda: nn.utils.parametrizations.weight_norm(conv),
            "by_input": lambda: nn.utils.parametrizations.weight_norm(conv, dim=1),
            "spectral": lambda: nn.utils.parametrizations.spectral_norm(conv),
        }[how]()
        super().__init__(made)


class Regions(nn.Module):
    """Looks at regions, as detectors do, with stand-ins of torchvision's operators that know no gradient."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how, self.mix = how, nn.Conv2d(width, width, 1)
        self.offsets, self.score = nn.Conv2d(width, 2, 1), nn.Conv2d(width, 1, 1)
        self.weight, self.bias = nn.Parameter(torch.randn(width, width, 1, 1)), nn.Parameter(torch.randn(width))
        self.parts, self.spread = nn.Conv2d(width, 12, 1), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        seen = x.detach()
        if self.how == "sensitive":
            boxes = torch.tensor([[0, 0.0, 0.0, 1.5, 1.5], [1, 1.0, 1.0, 2.5, 2.5]], dtype=x.dtype)
            made = stand_in("ps_roi_align")(self.parts(seen).detach(), boxes, 1.0, 2, 2, 0)[0]
            return x + self.spread(made.flatten(1))[:, :, None, None]
        boxes = torch.tensor([[0, 0.0, 0.0, 1.5, 1.5], [1, 1.0, 1.0, 2.5, 2.5]], dtype=x.dtype)
        if self.how == "deform":
            offsets, none = self.offsets(seen).detach(), x.new_zeros(0, 1, 1, 1)
            options = (1, 1, 0, 0, 1, 1, 1, 1, False)
            y = stand_in("deform_conv2d")(seen, self.weight.detach(), offsets, none, self.bias.detach(), *options)
        elif self.how == "chosen":
            score = torch.sigmoid(self.score(seen)).detach().amax((2, 3)).flatten()
            kept = stand_in("nms")(boxes[:, 1:], score, 0.5)
            y = seen[kept].sum(0, keepdim=True)
        else:
            y = stand_in("roi_align")(seen, boxes, 1.0, 2, 2, 0, False).mean((2, 3), keepdim=True)
        return x + self.mix(y)


# --------------------------------------------------------------------------------------------------- blocks of tokens


class RootMeanSquare(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)


class Soft(nn.Module):
    """What some use in place of a norm: entry by entry."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(0.7 * x) * self.weight + self.bias


TOKEN_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer": nn.LayerNorm,
    "rms": RootMeanSquare,
    "soft": Soft,
    "none": lambda width: nn.Identity(),
}


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, kv: int, size: int, make: str, view: str, attend: str, out: str) -> None:
        super().__init__()
        self.num_heads, self.kv_heads, self.head_dim, self.rep = heads, kv, size, heads // kv
        self.inner, self.kv_inner, self.scale = heads * size, kv * size, size**-0.5
        self.make, self.how, self.attend, self.out = make, view, attend, out
        if make == "separate":
            self.q, self.k, self.v = (nn.Linear(width, number * size) for number in (heads, kv, kv))
        else:
            self.qkv = nn.Linear(width, (heads + 2 * kv) * size, bias=make != "chunk")
        self.proj = nn.Linear(heads * size, width)

    def _heads(self, x: Tensor, heads: int, inner: int) -> Tensor:
        b, n, c = x.shape
        if self.how == "both":
            return x.view(b, n, heads, self.head_dim)
        if self.how == "size":
            return x.view(b, n, -1, self.head_dim)
        if self.how == "number":
            return x.view(b, n, heads, -1)
        if self.how == "divided":
            return x.reshape(b, n, heads, c // heads)
        if self.how == "inner":
            return x.reshape(b, n, heads, inner // heads)
        if self.how == "star":
            return x.view(*x.shape[:-1], heads, -1)
        return x.unflatten(-1, (heads, self.head_dim))

    def _qkv(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        b, n, _ = x.shape
        if self.make == "separate":
            parts = self.q(x), self.k(x), self.v(x)
        elif self.make == "split":
            parts = self.qkv(x).split([self.inner, self.kv_inner, self.kv_inner], dim=-1)
        elif self.make == "heads":
            qkv = self.qkv(x).view(b, n, -1, self.head_dim).transpose(1, 2)
            return qkv.split([self.num_heads, self.kv_heads, self.kv_heads], dim=1)
        elif self.make == "chunk" or self.kv_heads != self.num_heads:
            width = self.num_heads * self.head_dim
            qkv = self.qkv(x)
            parts = qkv[..., :width], *qkv[..., width:].chunk(2, dim=-1)
        else:
            q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
            return q, k, v
        q, k, v = parts
        return (
            self._heads(q, self.num_heads, self.inner).transpose(1, 2),
            self._heads(k, self.kv_heads, self.kv_inner).transpose(1, 2),
            self._heads(v, self.kv_heads, self.kv_inner).transpose(1, 2),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q, k, v = self._qkv(x)
        if self.rep > 1:
            if self.attend in ("sdpa", "manual"):
                k = k[:, :, None].expand(b, self.kv_heads, self.rep, n, self.head_dim)
                k = k.reshape(b, self.kv_heads * self.rep, n, self.head_dim)
                v = v[:, :, None].expand(-1, -1, self.rep, -1, -1).flatten(1, 2)
            else:
                k, v = k.repeat_interleave(self.rep, 1), v.repeat_interleave(self.rep, 1)
        if self.attend == "sdpa":
            y = F.scaled_dot_product_attention(q, k, v)
        elif self.attend == "causal":
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.3)
        elif self.attend == "einsum":
            scores = torch.einsum("bhnd,bhmd->bhnm", q, k) * self.scale
            y = torch.einsum("bhnm,bhmd->bhnd", scores.softmax(-1), v)
        elif self.attend == "root":
            y = (q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)).softmax(-1) @ v
        elif self.attend == "linear":
            y = F.relu(q) @ (F.relu(k).transpose(-2, -1) @ v)
        else:
            mask = torch.full((n, n), -torch.inf).triu(1)
            y = ((q * self.scale) @ k.transpose(-2, -1) + mask).softmax(-1) @ v
        y = y.transpose(1, 2)
        if self.out == "flatten":
            y = y.flatten(2)
        elif self.out == "minus":
            y = y.reshape(b, n, -1)
        elif self.out == "inner":
            y = y.contiguous().view(b, n, self.inner)
        else:
            y = y.reshape(b, n, self.num_heads * self.head_dim)
        return self.proj(y)


class Packed(nn.Module):
    """torch's own multi-head attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


class MLP(nn.Module):
    def __init__(self, width: int, inner: int, how: str) -> None:
        super().__init__()
        self.how, self.inner = how, inner
        self.up = nn.Linear(width, inner if how in ("plain", "two", "squared") else 2 * inner, bias=how != "two")
        self.gate = nn.Linear(width, inner, bias=False) if how == "two" else None
        self.down = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.how == "plain":
            return self.down(F.gelu(y))
        if self.how == "squared":
            return self.down(F.relu(y).square())
        if self.gate is not None:
            return self.down(F.silu(self.gate(x)) * y)
        if self.how == "glu":
            return self.down(F.glu(y, -1))
        if self.how == "strided":
            return self.down(y[..., ::2] * torch.sigmoid(y[..., 1::2]))
        gate, y = y.chunk(2, -1) if self.how == "chunk" else y.split(self.inner, dim=-1)
        return self.down(F.silu(gate) * y)


class TokenMixer(nn.Module):
    def __init__(self, inner: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(LENGTH, inner), nn.Linear(inner, LENGTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x.transpose(1, 2)))).transpose(1, 2)


class Convolved(nn.Module):
    """A depthwise convolution along the sequence, as in state-space models, with a gate."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.inner = inner
        self.up, self.down = nn.Linear(width, 2 * inner), nn.Linear(inner, width)
        self.conv = nn.Conv1d(inner, inner, 3, padding=2, groups=inner)

    def forward(self, x: Tensor) -> Tensor:
        y, gate = self.up(x).chunk(2, dim=-1)
        y = self.conv(y.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2)
        return self.down(F.silu(y) * F.silu(gate))


class Recurrent(nn.Module):
    """Recurrent layers and cells, and back to the width."""

    def __init__(self, width: int, inner: int, kind: str, layers: int, two_way: bool) -> None:
        super().__init__()
        self.inner, self.kind = inner, kind
        if kind == "cell":
            self.cell: nn.Module = nn.GRUCell(width, inner)
            self.back = nn.Linear(inner, width)
        else:
            layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
            self.rnn = layer(width, inner, layers, batch_first=True, bidirectional=two_way)
            self.back = nn.Linear(inner * (2 if two_way else 1), width)

    def forward(self, x: Tensor) -> Tensor:
        if self.kind != "cell":
            return self.back(self.rnn(x)[0])
        state, states = x.new_zeros(x.shape[0], self.inner), []
        for now in x.unbind(1):
            state = self.cell(now, state)
            states.append(state)
        return self.back(torch.stack(states, 1))


class Scan(nn.Module):
    """A diagonal state-space model whose step, input and output depend on the input; step by step or at once."""

    def __init__(self, width: int, inner: int, state: int, how: str) -> None:
        super().__init__()
        self.up, self.down, self.how, self.state = nn.Linear(width, inner), nn.Linear(inner, width), how, state
        self.decay, self.skip = nn.Parameter(torch.randn(inner, state)), nn.Parameter(torch.randn(inner))
        self.step, self.read = nn.Linear(inner, inner), nn.Linear(inner, 2 * state, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        u = F.silu(self.up(x))
        step = F.softplus(self.step(u))
        b, c = self.read(u).split([self.state, self.state], dim=-1)
        decay = torch.exp(-step[..., None] * self.decay.exp() * 0.1)
        given = step[..., None] * u[..., None] * b[:, :, None]
        if self.how == "sums":
            totals = decay.log().cumsum(1)
            states = (given * torch.exp(-totals)).cumsum(1) * torch.exp(totals)
        else:
            state, kept = torch.zeros_like(given[:, 0]), []
            for number in range(x.shape[1]):
                state = state * decay[:, number] + given[:, number]
                kept.append(state)
            states = torch.stack(kept, 1)
        y = torch.einsum("blds,bls->bld", states, c)
        return self.down(y + self.skip * u)


class Compared(nn.Module):
    """Distances to a codebook."""

    def __init__(self, width: int, inner: int, power: float) -> None:
        super().__init__()
        self.up, self.down, self.power = nn.Linear(width, inner), nn.Linear(4, width), power
        self.known = nn.Parameter(torch.randn(4, inner))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.cdist(self.up(x), self.known.expand(x.shape[0], -1, -1), p=self.power))


class Form(nn.Module):
    """Two views of a token, in a bilinear form."""

    def __init__(self, width: int, inner: int, act: str) -> None:
        super().__init__()
        self.a, self.b, self.act = nn.Linear(width, inner), nn.Linear(width, 3), ACTIVATIONS[act]()
        self.form = nn.Bilinear(inner, 3, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.act(self.a(x)), self.b(x))


class Transformed(nn.Module):
    """Mixed by a Fourier transform along the sequence, or along both dimensions."""

    def __init__(self, width: int, both: bool) -> None:
        super().__init__()
        self.both, self.mix = both, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.fft.fft2(x, norm="ortho") if self.both else torch.fft.fft(x, dim=1, norm="ortho")
        return self.mix(y.real)


class Written(nn.Module):
    """Tokens that are written, replaced or added by number or by a mask."""

    def __init__(self, width: int, inner: int, how: str) -> None:
        super().__init__()
        self.how, self.up, self.down = how, nn.Linear(width, inner), nn.Linear(inner, width)
        self.other = nn.Linear(width, inner)

    def forward(self, x: Tensor) -> Tensor:
        y, other = torch.relu(self.up(x)), self.other(x[:, :2])
        rows = torch.tensor([3, 1])
        if self.how == "copy":
            y = y.index_copy(1, rows, other)
        elif self.how == "fill":
            y = y.index_fill(1, rows, 0.0)
        elif self.how == "reduce":
            y = y.scatter_reduce(1, rows[None, :, None].expand_as(other), other, "sum")
        elif self.how == "scatter":
            y = y.scatter(1, rows[None, :, None].expand_as(other), other)
        elif self.how == "put":
            y = y.index_put((torch.arange(x.shape[0])[:, None], rows[None]), other)
        elif self.how == "mask":
            mask = (torch.arange(x.shape[1]) < 2)[None, :, None].expand_as(y)
            y = y.masked_scatter(mask, other)
        else:
            y = y.clone()
            y[:, 1:3] = other
        return self.down(y)


class Ranked(nn.Module):
    """Tokens by the order of something."""

    def __init__(self, width: int, how: str) -> None:
        super().__init__()
        self.how, self.score, self.mix = how, nn.Linear(width, 1), nn.Linear(width, width)
        self.table = nn.Embedding(4, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(x)
        if self.how == "sort":
            return y.sort(dim=1)[0]
        if self.how == "top":
            return y + x.topk(2, dim=1)[0].sum(1, keepdim=True)
        score = self.score(x)
        if self.how == "gather":
            return y.gather(1, score.argsort(1).expand(-1, -1, y.shape[2]))
        if self.how == "largest":
            return y * score.cummax(1)[0]
        return y + self.table(torch.bucketize(score[..., 0].detach(), torch.tensor([-0.5, 0.0, 0.5])))


class Routed(nn.Module):
    """Every token goes through one of three experts, the one that a router chooses."""

    def __init__(self, width: int, inner: int, how: str) -> None:
        super().__init__()
        self.how, self.router = how, nn.Linear(width, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width)) for _ in range(3)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        chosen = self.router(rows).argmax(-1)
        result = torch.zeros_like(rows)
        for number, expert in enumerate(self.experts):
            where = torch.nonzero(chosen == number)[:, 0]
            if self.how == "written":
                result[where] = expert(rows[where])
            else:
                result.index_add_(0, where, expert(rows[where]))
        if self.how == "counted":
            result = result * torch.bincount(chosen, minlength=3)[chosen][:, None]
        return result.reshape(x.shape)


class Odd(nn.Module):
    """What is met now and then."""

    def __init__(self, width: int, inner: int, how: str) -> None:
        super().__init__()
        self.how, self.up, self.down = how, nn.Linear(width, inner), nn.Linear(inner, width)
        self.vector, self.other = nn.Parameter(torch.randn(inner)), nn.Parameter(torch.randn(inner))
        self.dropout = nn.Dropout1d(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(ODD[self.how](self, torch.tanh(self.up(x))))

    def scores(self, y: Tensor) -> Tensor:
        """[batch, length, length], positive definite."""
        return y @ y.mT + 3 * torch.eye(y.shape[1])


def _added(self: Odd, y: Tensor) -> Tensor:
    return torch.stack([torch.addmv(self.other, row.mT @ row, self.vector) for row in y])[:, None] + y


def _where(self: Odd, y: Tensor) -> Tensor:
    among = torch.sort(y[:, :, 0].detach())[0]
    return y + torch.searchsorted(among, y[:, :, 1].detach()).to(y.dtype)[..., None]


def _counted(self: Odd, y: Tensor) -> Tensor:
    return y + 1 if bool(y.isfinite().all()) else y


def _crossed(self: Odd, y: Tensor) -> Tensor:
    return torch.linalg.cross(y[:, :3], y[:, 1:4], dim=1).repeat(1, 2, 1)[:, : y.shape[1]]


def _slope(of: Callable[[Tensor], Tensor]) -> Callable[[Odd, Tensor], Tensor]:
    """What is added is the slope of an energy: a backward pass is part of the forward pass."""

    def added(self: Odd, y: Tensor) -> Tensor:
        with torch.enable_grad():
            at = y.detach().requires_grad_()
            return y + torch.autograd.grad((of(at) * self.vector).sum(), at, create_graph=self.training)[0]

    return added


ODD: dict[str, Callable[[Odd, Tensor], Tensor]] = {
    "mv": lambda self, y: y * (y @ self.vector)[..., None],
    "dot": lambda self, y: y * torch.dot(self.vector, self.other),
    "vdot": lambda self, y: y * torch.vdot(self.vector, self.other),
    "addmv": _added,
    "baddbmm": lambda self, y: torch.baddbmm(y, self.scores(y), y, alpha=0.5),
    "inverse": lambda self, y: torch.linalg.inv(self.scores(y)) @ y,
    "solve": lambda self, y: torch.linalg.solve(self.scores(y), y),
    "trace": lambda self, y: y * torch.trace(self.scores(y)[0]),
    "cross": _crossed,
    "dist": lambda self, y: y * torch.dist(y[:, 0], y[:, 1]),
    "diagonal": lambda self, y: y + self.scores(y).diagonal(dim1=1, dim2=2).tanh().diag_embed() @ y,
    "logsumexp": lambda self, y: y - y.logsumexp(1, keepdim=True),
    "extremes": lambda self, y: y + torch.var_mean(y, 1)[0][:, None] + y.max(1)[0][:, None],
    "select": lambda self, y: y.index_select(1, torch.tensor([4, 2, 2, 0, 1])),
    "often": lambda self, y: y.repeat_interleave(torch.tensor([0, 1, 2, 1, 1]), dim=1),
    "ones": lambda self, y: y + torch.ones_like(y),
    "dropped": lambda self, y: self.dropout(y),
    "search": _where,
    "checked": _counted,
    "rounded": lambda self, y: torch.fake_quantize_per_tensor_affine(y, 0.05, 0, -128, 127),
    "lower": lambda self, y: self.scores(y).tril() @ y,
    "slope": _slope(F.logsigmoid),
    "slope of all": _slope(lambda y: y.softmax(1)),
    "peak": lambda self, y: y * y.relu().max(-1, keepdim=True)[0],
}


class Encoder(nn.Module):
    """torch's own encoder layer."""

    def __init__(self, width: int, heads: int, inner: int, first: bool) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(width, heads, inner, 0.0, batch_first=True, norm_first=first)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class TokenBlock(nn.Module):
    def __init__(self, norm: nn.Module, body: nn.Module, how: str) -> None:
        super().__init__()
        self.norm, self.body, self.how = norm, body, how

    def forward(self, x: Tensor) -> Tensor:
        if self.how == "pre":
            return x + self.body(self.norm(x))
        if self.how == "post":
            return self.norm(x + self.body(x))
        return self.body(self.norm(x))


# -------------------------------------------------------------------------------------------------- whole networks


class ImageNet(nn.Module):
    def __init__(self, spec: Image) -> None:
        super().__init__()
        width = spec.width
        self.stem, self.how = nn.Conv2d(3, width, 3, padding=1), spec.head
        blocks = []
        for block in spec.blocks:
            made, width = image_block(block, width)
            blocks.append(made)
        self.blocks = nn.ModuleList(blocks)
        self.width = width
        pixels = {"pooled": 1, "mean": 1, "adaptive": 4}.get(spec.head, SIDE * SIDE)
        self.head = nn.Conv2d(width, 3, 1) if spec.head == "conv" else nn.Linear(width * pixels, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        if self.how == "pooled":
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        elif self.how == "mean":
            x = x.mean([2, 3])
        elif self.how == "adaptive":
            x = torch.flatten(F.adaptive_max_pool2d(x, 2), 1)
        elif self.how == "view":
            x = x.reshape(x.shape[0], -1)
        elif self.how == "channels_last":
            x = x.permute(0, 2, 3, 1).flatten(1)
        elif self.how == "sized":
            x = x.reshape(-1, self.width * SIDE * SIDE)
        return self.head(x)


class TokenNet(nn.Module):
    def __init__(self, spec: Tokens) -> None:
        super().__init__()
        self.start, self.how, width = spec.start, spec.head, spec.width
        self.embed = nn.Embedding(VOCABULARY, width)
        self.position = nn.Parameter(torch.randn(1, LENGTH + 2, width))
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.numbered, self.bag = nn.Embedding(LENGTH, width), nn.EmbeddingBag(VOCABULARY, width, mode="sum")
        self.blocks = nn.ModuleList(token_block(block, width) for block in spec.blocks)
        self.head = nn.Linear(width, VOCABULARY, bias=spec.head != "tied")
        if spec.head == "tied":
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        if self.start == "parameter":
            x = x + self.position[:, : ids.shape[1]]
        elif self.start == "numbered":
            x = x + self.numbered(torch.arange(ids.shape[1]))
        elif self.start == "bag":
            x = x + self.bag(ids)[:, None]
        elif self.start == "token":
            x = torch.cat([self.token.expand(ids.shape[0], -1, -1), x], 1)[:, : ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        if self.how == "mean":
            x = x.mean(1)
        elif self.how == "first":
            x = x[:, 0]
        elif self.how == "product":
            return x @ self.embed.weight.t()
        elif self.how == "loss":
            return F.cross_entropy(self.head(x).flatten(0, 1), ids.flatten()) + F.mse_loss(x, torch.zeros_like(x))
        return self.head(x)


def image_block(block: Block, width: int) -> tuple[nn.Module, int]:
    """A block for images of ``width`` channels, and how many channels it gives."""
    name, *options = block
    if name == "conv":
        return Conv(width, *options), options[0]
    if name == "grouped":
        per, bias, norm, act = options
        groups = next(g for g in (4, 3, 2, 1) if width % g == 0)
        return Conv(width, groups * per, 3, bias, norm, act, groups), groups * per
    if name == "depthwise":
        times, bias, norm, act = options
        return Conv(width, width * times, 3, bias, norm, act, width), width * times
    if name == "residual":
        body, how = options
        made, out = image_block(body, width)
        back = nn.Identity() if out == width else nn.Conv2d(out, width, 1)
        return Residual(width, nn.Sequential(made, back), how), width
    if name == "concat":
        body, how = options
        made, out = image_block(body, width)
        return Concat(made, how), out + width * (2 if how == "twice" else 1)
    if name == "shuffle":
        groups = next(g for g in (2, 3, 1) if width % g == 0)
        return Shuffle(width, groups, *options), width
    if name == "literal":
        return Literal(width), 4
    if name == "squeeze":
        return Squeeze(width, *options), width
    if name == "gate":
        return Gate(width, *options), options[0]
    if name == "parts":
        if width < 2:
            return nn.Identity(), width
        body, how = options
        first = max(1, width // 3) if how != "written" else width // 2
        made, out = image_block(body, first)
        if how == "written" and out != first:
            made, out = nn.Sequential(made, nn.Conv2d(out, first, 1)), first
        return Parts(width, made, first, how), width - first + out
    if name == "pool":
        return Pool(*options), width
    if name == "twice":
        return Twice(width, *options), width
    if name == "scale":
        return Scale(width, *options), width
    if name == "over":
        return OverChannels(*options), width
    if name == "swap":
        if width % 2:
            return nn.Identity(), width
        return Swap(*options), width // 2 if options == ["add"] else width
    if name == "last":
        return ChannelsLast(width, *options), width
    if name == "branches":
        bodies, out, how = options
        return Branches([_to(body, width, out) for body in bodies], how), out
    if name == "pixels":
        return PixelShuffled(width, *options), options[0]
    if name == "transposed":
        per = options[0]
        groups = next(g for g in (2, 3, 1) if width % g == 0)
        return Transposed(width, per * groups, groups), per * groups
    if name == "patches":
        return Patches(width, *options), width
    if name == "warped":
        return Warped(width), width
    if name == "waves":
        return Waves(width, *options), width
    if name == "reweighted":
        return Reweighted(width, *options), options[0]
    if name == "regions":
        return Regions(width, *options), width
    assert name == "standardised"
    return Standardised(width, *options), options[0]


def _to(body: Block, width: int, out: int) -> nn.Module:
    made, given = image_block(body, width)
    return nn.Sequential(made, nn.Conv2d(given, out, 1))


def token_block(block: Block, width: int) -> nn.Module:
    name, norm, how, *options = block
    body: nn.Module
    if name == "attention":
        body = Attention(width, *options)
    elif name == "packed":
        body = Packed(width, next(h for h in (4, 3, 2, 1) if width % h == 0))
    elif name == "mlp":
        body = MLP(width, *options)
    elif name == "mixer":
        body = TokenMixer(*options)
    elif name == "encoder":
        body = Encoder(width, next(h for h in (4, 3, 2, 1) if width % h == 0), *options)
    else:
        body = _TOKEN_BODIES[name](width, *options)
    return TokenBlock(TOKEN_NORMS[norm](width), body, how)


_TOKEN_BODIES: dict[str, Callable[..., nn.Module]] = {
    "convolved": Convolved,
    "recurrent": Recurrent,
    "scan": Scan,
    "compared": Compared,
    "form": Form,
    "transformed": Transformed,
    "written": Written,
    "ranked": Ranked,
    "routed": Routed,
    "odd": Odd,
}


def build(spec: Image | Tokens) -> tuple[nn.Module, Tensor]:
    """The module and an example input."""
    torch.manual_seed(0)
    if isinstance(spec, Image):
        return ImageNet(spec), torch.randn(BATCH, 3, SIDE, SIDE)
    return TokenNet(spec), torch.randint(0, VOCABULARY, (BATCH, LENGTH))


# ---------------------------------------------------------------------------------------------------- drawing them

_widths = st.sampled_from([4, 6, 8, 3, 12])
_norms = st.sampled_from(["none", "batch", "none", "batch", "group", "batch_plain", "batch_now", "instance", "channel"])
_acts = st.sampled_from(list(ACTIVATIONS))
_one_of = st.sampled_from

_simple: st.SearchStrategy[Block] = st.one_of(
    st.tuples(st.just("conv"), _widths, _one_of([1, 3]), st.booleans(), _norms, _acts),
    st.tuples(st.just("grouped"), _one_of([2, 1, 3]), st.booleans(), _norms, _acts),
    st.tuples(st.just("depthwise"), _one_of([1, 2]), st.booleans(), _norms, _acts),
    st.tuples(st.just("gate"), _widths, _one_of(["glu", "chunk", "split", "sizes", "half", "slices"])),
    st.tuples(st.just("twice"), _acts),
    st.tuples(st.just("standardised"), _widths, _one_of(["standard", "normed", "tanh"])),
    st.tuples(st.just("transposed"), _one_of([2, 1, 3])),
    st.tuples(st.just("reweighted"), _widths, _one_of(["weight", "by_input", "spectral"])),
)
_past: st.SearchStrategy[Block] = st.one_of(
    st.tuples(st.just("shuffle"), _one_of(["attributes", "computed", "unflatten", "given", "torch"])),
    st.tuples(st.just("squeeze"), _one_of([2, 4]), _one_of(["linear", "conv"])),
    st.tuples(st.just("pool"), _one_of(POOLS)),
    st.tuples(st.just("scale"), _one_of(["mul", "in_place", "view", "addcmul"])),
    st.tuples(st.just("over"), _one_of(["spatial", "softmax", "normalize", "roll", "sum", "cumsum"])),
    st.tuples(st.just("swap"), _one_of(["swap", "add", "interleave"])),
    st.tuples(st.just("last"), _one_of([4, 6]), st.booleans()),
    st.tuples(st.just("pixels"), _one_of([2, 4]), st.booleans()),
    st.tuples(st.just("literal")),
    st.tuples(st.just("patches"), _one_of(["fold", "tiles", "windows"])),
    st.tuples(st.just("warped")),
    st.tuples(st.just("waves"), _one_of(["filter", "channels", "rows"])),
    st.tuples(st.just("regions"), _one_of(["deform", "chosen", "align", "sensitive"])),
)


def _nested(body: st.SearchStrategy[Block]) -> st.SearchStrategy[Block]:
    return st.one_of(
        st.tuples(st.just("residual"), body, _one_of(["relu", "in_place", "onto", "scaled"])),
        st.tuples(st.just("concat"), body, _one_of(["after", "before", "twice", "flipped"])),
        st.tuples(
            st.just("parts"), body, _one_of(["sizes", "slices", "narrow", "negative", "tensor_split", "written"])
        ),
        st.tuples(
            st.just("branches"),
            st.lists(body, min_size=2, max_size=3).map(tuple),
            _widths,
            _one_of(["sum", "stack", "mean", "gate"]),
        ),
    )


_inner = st.one_of(_simple, _simple, _past)
_image_blocks = st.one_of(_simple, _simple, _past, _nested(_inner), _nested(st.one_of(_inner, _nested(_inner))))
images: st.SearchStrategy[Image] = st.builds(
    Image,
    _widths,
    st.lists(_image_blocks, min_size=1, max_size=4).map(tuple),
    _one_of(["pooled", "mean", "adaptive", "view", "channels_last", "sized", "conv"]),
)

_norm_and_how = (_one_of(list(TOKEN_NORMS)), _one_of(["pre", "pre", "post", "plain"]))
_token_blocks: st.SearchStrategy[Block] = st.one_of(
    st.tuples(
        st.just("attention"),
        *_norm_and_how,
        st.just(4),
        _one_of([4, 2, 1]),
        _one_of([2, 3, 4]),
        _one_of(["separate", "split", "heads", "chunk", "packed"]),
        _one_of(["both", "size", "number", "divided", "inner", "star", "unflatten"]),
        _one_of(["sdpa", "causal", "einsum", "root", "linear", "manual"]),
        _one_of(["flatten", "minus", "inner", "product"]),
    ),
    st.tuples(
        st.just("mlp"),
        *_norm_and_how,
        _one_of([4, 6, 8]),
        _one_of(["plain", "two", "squared", "glu", "strided", "chunk", "split"]),
    ),
    st.tuples(st.just("mixer"), *_norm_and_how, _one_of([3, 4])),
    st.tuples(st.just("convolved"), *_norm_and_how, _one_of([4, 6])),
    st.tuples(st.just("packed"), *_norm_and_how),
)
_more_token_blocks: st.SearchStrategy[Block] = st.one_of(
    st.tuples(
        st.just("recurrent"),
        *_norm_and_how,
        _one_of([3, 4, 6]),
        _one_of(["lstm", "gru", "rnn", "cell"]),
        _one_of([1, 2]),
        st.booleans(),
    ),
    st.tuples(st.just("scan"), *_norm_and_how, _one_of([3, 6]), _one_of([2, 3]), _one_of(["steps", "sums"])),
    st.tuples(st.just("routed"), *_norm_and_how, _one_of([3, 6]), _one_of(["added", "written", "counted"])),
    st.tuples(st.just("compared"), *_norm_and_how, _one_of([3, 6]), _one_of([1.0, 2.0])),
    st.tuples(st.just("form"), *_norm_and_how, _one_of([3, 6]), _acts.filter(lambda act: not act.endswith("_"))),
    st.tuples(st.just("transformed"), *_norm_and_how, st.booleans()),
    st.tuples(
        st.just("written"),
        *_norm_and_how,
        _one_of([3, 6]),
        _one_of(["copy", "fill", "reduce", "scatter", "put", "mask", "slice"]),
    ),
    st.tuples(st.just("ranked"), *_norm_and_how, _one_of(["sort", "top", "gather", "largest", "table"])),
    st.tuples(st.just("encoder"), *_norm_and_how, _one_of([4, 6]), st.booleans()),
    st.tuples(st.just("odd"), *_norm_and_how, _one_of([4, 6]), _one_of(list(ODD))),
)
tokens: st.SearchStrategy[Tokens] = st.builds(
    Tokens,
    _one_of([6, 8, 4]),
    _one_of(["none", "parameter", "numbered", "token", "bag"]),
    st.lists(st.one_of(_token_blocks, _more_token_blocks), min_size=1, max_size=3).map(tuple),
    _one_of(["own", "tied", "mean", "first", "product", "loss"]),
)
networks: st.SearchStrategy[Image | Tokens] = st.one_of(images, tokens)
odd_ones = [Tokens(6, "none", (("odd", "layer", "pre", 6, how),), "own") for how in ODD]
