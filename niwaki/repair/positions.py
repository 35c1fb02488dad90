"""The numbers that a layer multiplies its weights by at each position of its output, and the output there."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
Convolved = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d


def windows(layer: nn.Module, x: Tensor, sides: Sequence[int] | None = None) -> Tensor:
    """A view of ``x`` [positions ..., what is summed over at one of them ...].

    ``sides``: those of the output of a transposed convolution, where its call may have had an ``output_size``.
    """
    if not isinstance(layer, Convolved):
        return x
    dims = layer.weight.ndim - 2
    x = x if x.ndim > dims + 1 else x.unsqueeze(0)
    stride = layer.stride
    if isinstance(layer, TRANSPOSED):
        x, stride = _spread(layer, x, sides), (1,) * dims
    elif any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for dim, (kernel, step, dilation) in enumerate(zip(layer.kernel_size, stride, layer.dilation, strict=True)):
        x = x.unfold(2 + dim, dilation * (kernel - 1) + 1, step)[..., ::dilation]
    return x.movedim(1, 1 + dims)  # channels behind the positions, in front of the places of the kernel


def _spread(layer: nn.Module, x: Tensor, sides: Sequence[int] | None) -> Tensor:
    """The input of the convolution that a transposed one is: zeros between the entries of ``x``, and around them."""
    assert isinstance(layer, TRANSPOSED)
    stride = layer.stride
    wide = x.new_zeros(*x.shape[:2], *(step * (size - 1) + 1 for step, size in zip(stride, x.shape[2:], strict=True)))
    wide[(slice(None), slice(None), *(slice(None, None, step) for step in stride))] = x
    around: list[int] = []
    for dim in reversed(range(len(stride))):
        reach = layer.dilation[dim] * (layer.kernel_size[dim] - 1)
        border, further = reach - int(layer.padding[dim]), layer.output_padding[dim]
        if sides is not None:  # no more than torch allows: other positions must not look like those of the output
            asked = sides[dim] - (wide.shape[2 + dim] + 2 * border - reach)
            further = min(max(asked, 0), max(layer.stride[dim], layer.dilation[dim]) - 1)
        around += [border, border + further]
    return F.pad(wide, around)


def last_channel(layer: nn.Module, z: Tensor) -> Tensor:
    """A view of the output ``z`` of a layer with its channels last."""
    if isinstance(layer, Convolved):
        return (z if z.ndim == layer.weight.ndim else z.unsqueeze(0)).movedim(1, -1)
    return z
