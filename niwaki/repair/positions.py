"""The numbers that a layer multiplies its weights by at each position of its output, and the output there."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.repair.consumers import Convolution, Reader

_ENTRIES = 2**22  # of the inputs that are gathered at once
_HELD_OUT = 4  # one of so many positions is held out


def rows(
    layer: Reader, small: Reader, output: Tensor, given: Tensor, most: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, float, bool]]:
    """At most ``most`` positions of one call, drawn at random if there are more.

    Yields pieces ``(outputs [N, O], inputs [N, S], weight, held_out)``: the ``output`` of ``layer`` less its bias, what
    ``small``, its counterpart in the cut network, makes a sum of there, and how many positions each stands for. The
    last quarter of the positions, and so in most networks of the samples, is held out.

    Raises:
        ValueError: the two did not read the same positions.
    """
    views = windows(small, given)
    z = last_channel(layer, output)
    places = views.shape[: z.ndim - 1]
    if z.shape[:-1] != places:
        raise ValueError("it does not read the same positions in the cut network")
    z, count = z.reshape(-1, z.shape[-1]), places.numel()
    picked = torch.arange(count)
    if count > most:
        picked = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:most].sort().values
    exact = torch.promote_types(torch.promote_types(z.dtype, views.dtype), torch.float32)
    bias = 0.0 if layer.bias is None else layer.bias.detach().to(exact)
    border = len(picked) - len(picked) // _HELD_OUT
    length = max(1, _ENTRIES // max(1, small.weight[0].numel()))
    for held_out, part in enumerate((picked[:border], picked[border:])):
        for piece in torch.split(part.to(z.device), length) if len(part) else ():
            inputs = views[torch.unravel_index(piece, places)].flatten(1).to(exact)
            yield z[piece].to(exact) - bias, inputs, count / len(picked), bool(held_out)


def windows(layer: Reader, x: Tensor) -> Tensor:
    """A view of ``x`` [positions ..., what is summed over at one of them ...]."""
    if isinstance(layer, nn.Linear):
        return x
    dims = layer.weight.ndim - 2
    x = x if x.ndim > dims + 1 else x.unsqueeze(0)
    if any(layer._reversed_padding_repeated_twice):
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode=mode)
    for dim, (kernel, stride, dilation) in enumerate(zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)):
        x = x.unfold(2 + dim, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    return x.movedim(1, 1 + dims)  # channels behind the positions, in front of the places of the kernel


def last_channel(layer: Reader, z: Tensor) -> Tensor:
    """A view of the output ``z`` of a layer with its channels last."""
    if isinstance(layer, Convolution):
        return (z if z.ndim == layer.weight.ndim else z.unsqueeze(0)).movedim(1, -1)
    return z
