"""The shares that inputs have of what a matrix product or convolution adds up: their means plus their deviations.

With c_ij = |w_ij x_j| / sum_k |w_ik x_k| in one sample, the sums of c and of c^2 over all samples are |w_ij| and w_ij^2
times the gradient, by the weight, of an operator that is given 1 / sum and its square. So no table of samples, outputs
and inputs is needed, and sums over batches add up to those over all samples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

_LEAST = 1e-15  # of the largest input times the largest weight; less is nothing, so that squares are finite


@dataclass(frozen=True, slots=True, eq=False)
class ShareSums:
    """Sums over ``samples`` of c, ``first``, and of c^2, ``second``, of each weight of one reader: [leading, positions,
    outputs, kernel]."""

    first: Tensor
    second: Tensor
    samples: int

    def __add__(self, other: ShareSums) -> ShareSums:
        return ShareSums(self.first + other.first, self.second + other.second, self.samples + other.samples)

    def shares(self) -> Tensor:
        """mean(c) + std(c), summed over the kernel, as a mean over outputs and leading dimensions: [positions]."""
        mean, square = self.first / max(self.samples, 1), self.second / max(self.samples, 1)
        found = mean + (square - mean.square()).clamp(min=0).sqrt()
        return found.sum(3).mean((0, 2))


def shares_in_product(x: Tensor, weight: Tensor) -> ShareSums:
    """The sums over the samples of ``x`` [..., samples, positions] for ``weight`` [..., positions, outputs]. Where the
    same weight is used along a leading dimension, its samples are there, too.

    >>> x, weight = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[3.0], [1.0]])
    >>> shares_in_product(x, weight).shares()
    tensor([0.7500, 0.2500])
    """
    same = [dim for dim in range(weight.dim() - 2) if weight.stride(dim) == 0]
    x, weight = _scaled(x, -1), _scaled(weight, -2)
    over = _inverse(x @ weight)
    samples = x.shape[-2]
    first = weight * (x.mT @ over)
    second = weight.square() * (x.square().mT @ over.square())
    for dim in same:
        samples *= first.shape[dim]
        first, second = first.sum(dim, keepdim=True), second.sum(dim, keepdim=True)
    shape = (-1, *first.shape[-2:], 1)
    return ShareSums(first.reshape(shape), second.reshape(shape), samples)


def shares_in_convolution(x: Tensor, weight: Tensor, how: Sequence[Any]) -> ShareSums:
    """The same where ``weight`` is the kernel of a convolution of one group, and a sample is a place of its result.
    ``how``: its arguments from the stride on."""
    channels, outputs = (0, 1) if how[3] else (1, 0)
    kernel = [dim for dim in range(weight.dim()) if dim != outputs]
    x, weight = _scaled(x, *range(1, x.dim())), _scaled(weight, *kernel)
    over = _inverse(aten.convolution.default(x, weight, None, *how))

    def by_weight(values: Tensor, given: Tensor) -> Tensor:
        found: Tensor = aten.convolution_backward.default(given, values, weight, None, *how, [False, True, False])[1]
        return found

    first = weight * by_weight(x, over)
    second = weight.square() * by_weight(x.square(), over.square())
    first, second = (one.movedim((channels, outputs), (0, 1)).flatten(2).unsqueeze(0) for one in (first, second))
    return ShareSums(first, second, over.numel() // max(over.shape[1], 1))


def _scaled(x: Tensor, *dims: int) -> Tensor:
    """|x| over a power of two near its largest along ``dims``: shares do not depend on how large a sample is, or what
    an output reads it with, and squares of very small and very large numbers are no numbers."""
    x = x.detach().abs().to(torch.promote_types(x.dtype.to_real(), torch.float32))
    if not x.numel():
        return x
    largest = x.amax(dims, keepdim=True)
    return x / torch.where(largest > 0, largest / torch.frexp(largest).mantissa, 1)


def _inverse(total: Tensor) -> Tensor:
    """1 / ``total``, and 0 where nothing was added up: no input has a share there."""
    return torch.where(total > _LEAST, 1 / total, 0)
