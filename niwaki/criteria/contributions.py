"""The shares that inputs have of what a matrix product or convolution adds up: their means plus their deviations.

With c_ij = |w_ij x_j| / sum_k |w_ik x_k| in one sample, the sums of c and of c^2 over all samples are |w_ij| and w_ij^2
times the gradient, by the weight, of an operator that is given 1 / sum and its square. So no table of samples, outputs
and inputs is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def shares_in_product(x: Tensor, weight: Tensor) -> Tensor:
    """mean(c) + std(c) over the samples of ``x`` [..., samples, positions], summed over the outputs of ``weight``
    [..., positions, outputs] and divided by their number; the mean over leading dimensions: [positions].

    >>> x, weight = torch.tensor([[1.0, 1.0], [1.0, -1.0]]), torch.tensor([[3.0], [1.0]])
    >>> shares_in_product(x, weight)
    tensor([0.7500, 0.2500])
    """
    x, weight = _absolute(x), _absolute(weight)
    over = _inverse(x @ weight)
    first = weight * (x.mT @ over) / x.shape[-2]
    second = weight.square() * (x.square().mT @ over.square()) / x.shape[-2]
    found = _together(first, second).mean(-1)
    return found.flatten(0, -2).mean(0) if found.dim() > 1 else found


def shares_in_convolution(x: Tensor, weight: Tensor, how: Sequence[Any]) -> Tensor:
    """The same where ``weight`` is the kernel of a convolution of one group, and a sample is a place of its result;
    the sum over the kernel: [channels]. ``how``: its arguments from the stride on."""
    x, weight, transposed = _absolute(x), _absolute(weight), how[3]
    over = _inverse(aten.convolution.default(x, weight, None, *how))
    samples = over.numel() / over.shape[1]

    def by_weight(values: Tensor, given: Tensor) -> Tensor:
        found: Tensor = aten.convolution_backward.default(given, values, weight, None, *how, [False, True, False])[1]
        return found / samples

    first = weight * by_weight(x, over)
    second = weight.square() * by_weight(x.square(), over.square())
    channels, outputs = (0, 1) if transposed else (1, 0)
    return _together(first, second).mean(outputs, keepdim=True).movedim(channels, 0).flatten(1).sum(1)


def _absolute(x: Tensor) -> Tensor:
    return x.detach().abs().to(torch.promote_types(x.dtype.to_real(), torch.float32))


def _inverse(total: Tensor) -> Tensor:
    """1 / ``total``, and 0 where nothing was added up: no input has a share there."""
    return torch.where(total > 0, 1 / total, 0)


def _together(first: Tensor, second: Tensor) -> Tensor:
    """Mean plus deviation, from the means of c and c^2."""
    return first + (second - first.square()).clamp(min=0).sqrt()
