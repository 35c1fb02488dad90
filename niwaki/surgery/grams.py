"""What a layer reads in two networks at once: sums of products of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.surgery.readers import Reader

_CONVOLVE: Mapping[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the weight's dimensions


class Gram:
    """Sums over all positions of the inputs x [I] of ``layer`` and those y [S] of ``small``, which stands in its place
    in another network: of products, of the inputs themselves, and of the positions. An input of a linear layer is a
    feature, of a convolution a channel at a place of the kernel."""

    def __init__(self, layer: Reader, small: Reader) -> None:
        here, there = layer.weight[0].numel(), small.weight[0].numel()
        empty = torch.zeros(0, dtype=torch.float64, device=layer.weight.device)
        self._layers = layer, small
        self.xx, self.xy, self.yy = (empty.new_zeros(a, b) for a, b in ((here, here), (here, there), (there, there)))
        self.x, self.y = empty.new_zeros(here), empty.new_zeros(there)
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """What the two read in one call.

        Raises:
            ValueError: these are not the same positions.
        """
        for x_IN, y_SN in zip(*(_columns(*one) for one in zip(self._layers, (x, y), strict=True)), strict=True):
            if x_IN.shape[1] != y_SN.shape[1]:
                raise ValueError("it does not read the same positions in the cut network")
            self.xx += x_IN @ x_IN.T
            self.xy += x_IN @ y_SN.T
            self.yy += y_SN @ y_SN.T
            self.x += x_IN.sum(1)
            self.y += y_SN.sum(1)
            self.count += x_IN.shape[1]

    @property
    def finite(self) -> bool:
        """Whether all sums are."""
        return all(bool(value.isfinite().all()) for value in (self.xx, self.xy, self.yy))


def _columns(layer: Reader, x: Tensor) -> Iterator[Tensor]:
    """What the weights of a layer are multiplied with, [inputs, positions]; of a convolution one sample after another,
    since patches are larger than the sample by the size of the kernel."""
    if isinstance(layer, nn.Linear):
        yield x.reshape(-1, layer.weight.shape[1]).T.double()
    else:
        for one in x if x.ndim == layer.weight.ndim else [x]:
            yield _patches(layer, one.unsqueeze(0).double())


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """What a convolution multiplies its weights with, [channels times kernel, positions], of one input [1, C, ...]."""
    channels, kernel = layer.weight.shape[1], layer.weight.shape[2:]
    size = kernel.numel()
    picks = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *kernel)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0,) * len(kernel)
    convolve = _CONVOLVE[layer.weight.ndim]
    picks = picks.repeat(channels, *[1] * (picks.ndim - 1))
    return convolve(x, picks, None, layer.stride, padding, layer.dilation, channels)[0].flatten(1)
