"""Criteria of weights and gradients of the loss, or of the direction in which the optimizer moves."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.criteria.registry import criterion
from niwaki.per_unit.sums import UnitSums


@criterion("cosine", reads=("square", "aligned", "direction_square"))
def cosine(unit: UnitSums) -> Tensor:
    """1 - cos(x_g, d_g), in [0, 2].

    A step goes from x to x - lr * d, so a unit parallel to its direction is shrunk by the training: it is redundant
    (DHSPG, arXiv 2303.06862; the released HESSO has the opposite sign). 1 where either is zero.
    """
    lengths = (unit.square * unit.direction_square).sqrt()
    parallel = torch.where(lengths > 0, unit.aligned / lengths, lengths.new_zeros(()))
    return 1 - parallel.clamp(-1, 1)


@criterion("taylor1", reads=("product",))
def taylor1(unit: UnitSums) -> Tensor:
    """|<x_g, grad_g>|, with the gradient of the loss and not an adaptive optimizer's direction."""
    return unit.product.abs()


@criterion("taylor2", reads=("product_square",))
def taylor2(unit: UnitSums) -> Tensor:
    """1/2 x_g' F x_g with F the diagonal of the empirical Fisher information, the mean of grad^2 over the batches.

    That is 1/2 sum_i (x_i grad_i)^2 per batch, averaged by the caller. It is a term of second order: gradients that
    cancel in the first-order term add up here. (1/2 <x, d>^2, as released with HESSO, ranks as the first order does.)
    """
    return unit.product_square / 2


@criterion("drive", reads=("absolute", "product_absolute", "gradient_absolute"))
def drive(unit: UnitSums) -> Tensor:
    """sum_i |x_i| + |x_i grad_i| + |grad_i| (DRIVE, arXiv 2404.03687): size, and what the loss says of both of them.

    Meant for a network after its first few epochs, in which weights are still small and gradients large. The paper
    ranks single weights; a unit has the sum over its own. The terms are not brought to one scale, as published.
    """
    return unit.absolute + unit.product_absolute + unit.gradient_absolute


@criterion("fisher", reads=("product",))
def fisher(unit: UnitSums) -> Tensor:
    """1/2 <x_g, grad_g>^2 per batch, averaged by the caller: 1/2 x_g' F x_g with F the empirical Fisher matrix.

    Unlike ``taylor2``, whose F is diagonal, it includes the terms between the weights of a unit; on a single batch it
    ranks as ``taylor1`` does.
    """
    return unit.product.square() / 2
