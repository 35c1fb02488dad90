"""Follow axes where channels become pixels, pixels channels, or channels change groups."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.axis import merge
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample
from niwaki.rules.views import arrange, free, zeros_of

aten = torch.ops.aten
_PIXELS = "pixels are arranged by their position"


@nonnegative("self")
@homogeneous("self")
@rule(aten.pixel_shuffle.default)
def pixel_shuffle(call: Call) -> Label:
    """Channels are (channel, row, column) and become (channel), with r rows and columns for each one before."""
    x, r = call["self"], call["upscale_factor"]
    *lead, channels, height, width = x.axes
    made, inner = call.split(channels, (channels.size // r**2, r**2))
    for axis in (inner, height, width):
        call.pin(axis, _PIXELS)
    fixed = [call.fixed(axis.size * r, _PIXELS) for axis in (height, width)]
    return call.label((*lead, made, *fixed), (*x.zero[:-2], False, False))


@nonnegative("self")
@homogeneous("self")
@rule(aten.pixel_unshuffle.default)
def pixel_unshuffle(call: Call) -> Label:
    """The reverse of `pixel_shuffle`."""
    x, r = call["self"], call["downscale_factor"]
    *lead, channels, height, width = x.axes
    for axis in (height, width):
        call.pin(axis, _PIXELS)
    fixed = [call.fixed(axis.size // r, _PIXELS) for axis in (height, width)]
    return call.label((*lead, merge((channels, call.fixed(r**2))), *fixed), (*x.zero[:-2], False, False))


@nonnegative("self")
@homogeneous("self")
@rule(aten.channel_shuffle.default, aten.native_channel_shuffle.default)
def channel_shuffle(call: Call) -> Label:
    """Channels (group, channel) become (channel, group)."""
    x, groups = call["self"], call["groups"]
    outer, inner = call.split(x.axes[1], (groups, x.axes[1].size // groups))
    call.size_is(call.int_expr(groups), outer, "the number of groups")
    return call.label((x.axes[0], merge((inner, outer)), *x.axes[2:]), x.zero, x.weight)


class _Shuffled(nn.Module):
    """Twelve channels in three groups."""

    def __init__(self, bent: bool) -> None:
        super().__init__()
        self.a, self.b, self.groups = nn.Parameter(torch.randn(2, 12, 3)), nn.Parameter(torch.randn(12, 1)), 3
        self.bent = bent

    def forward(self) -> Tensor:
        x = self.a.sigmoid() if self.bent else self.a
        return torch.channel_shuffle(x[..., None], self.groups)[..., 0] * self.b


def _shuffle(bent: bool) -> Callable[[], nn.Module]:
    return lambda: _Shuffled(bent)


def _channels(x: Tensor) -> Tensor:
    """[3, 16, 3, 1]: sixteen channels that are removed one by one."""
    return torch.cat([x, x * 2, x.flip(1), x - 1], 1).permute(0, 1, 3, 2)[:, :, :3]


def _pixels(x: Tensor) -> Tensor:
    """[3, 4, 2, 4], of which the last two dimensions are an image."""
    return x.repeat(1, 1, 2, 1)


for _bent in (False, True):
    sample(channel_shuffle)(_shuffle(_bent))
    sample(pixel_shuffle)(arrange(lambda x: torch.pixel_shuffle(_channels(x), 2) * 2, _bent))
    sample(pixel_unshuffle)(arrange(lambda x: torch.pixel_unshuffle(_pixels(x), 2) * 2, _bent))
mutant(channel_shuffle)(free)
for _right in (pixel_shuffle, pixel_unshuffle, channel_shuffle):
    mutant(_right)(zeros_of(_right))


@mutant(pixel_shuffle)
def _rows_before_channels(call: Call) -> Label:
    channels, r = call["self"].axes[1], call["upscale_factor"]
    inner, made = call.split(channels, (r**2, channels.size // r**2))
    call.pin(inner, "")
    return call.label((call["self"].axes[0], made, *(call.fixed(size) for size in call.shapes[0][2:])))


@mutant(pixel_unshuffle)
def _channels_before_rows(call: Call) -> Label:
    axes = merge((call.fixed(call["downscale_factor"] ** 2), call["self"].axes[1]))
    return call.label((call["self"].axes[0], axes, *(call.fixed(size) for size in call.shapes[0][2:])))
