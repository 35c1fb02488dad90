"""The proximal maps and projections that methods share, on the vector of one unit or on the norms of all units.

``prox_F(y) = argmin_z  F(z) + |z - y|^2 / 2``. The first three act on one vector and are the definitions; the others
give, from sums over units, what changes all units at once.
"""

from __future__ import annotations

import torch
from torch import Tensor

_NEWTON = 12


def group_soft_threshold(y: Tensor, threshold: float) -> Tensor:
    """The prox of ``threshold * ||z||``: shortens ``y`` by ``threshold``, to zero if it is no longer than that.

    >>> group_soft_threshold(torch.tensor([3.0, 4.0]), 1.0)
    tensor([2.4000, 3.2000])
    >>> group_soft_threshold(torch.tensor([3.0, 4.0]), 6.0)
    tensor([0., 0.])
    """
    return torch.mul(y, soft_factor(y.norm(), threshold))


def metric_soft_threshold(y: Tensor, h: Tensor, threshold: float) -> Tensor:
    """The prox of ``threshold * ||z||`` in the metric h: argmin_z threshold * ||z|| + sum_i h_i (z_i - y_i)^2 / 2.

    It is z_i = h_i y_i / (h_i + threshold / r) with r = ||z||, and zero if and only if ||h y|| <= threshold.

    >>> metric_soft_threshold(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 2.0]), 2.0)
    tensor([2.4000, 3.2000])
    >>> metric_soft_threshold(torch.tensor([3.0, 4.0]), torch.tensor([2.0, 2.0]), 10.0)
    tensor([0., 0.])
    """
    r, limit = y.new_zeros(()), y.new_tensor(threshold)
    for _ in range(_NEWTON):
        r = longer(r, *metric_sums((h * y).square(), h, r, limit))
    return torch.where(limit > 0, metric_factor(h, r, limit) * y, y)


def metric_sums(square: Tensor, h: Tensor, r: Tensor, threshold: Tensor) -> tuple[Tensor, Tensor]:
    """Of S(r) = sum_i (h_i y_i)^2 / (h_i r + t)^2 and of -S'(r) / 2, the summands added up; ``square`` = (h y)^2."""
    ratio = square / (h * r + threshold).square()
    return ratio.sum(), (ratio * h / (h * r + threshold)).sum()


def longer(r: Tensor, total: Tensor, slope: Tensor) -> Tensor:
    """One step of Newton's method towards S(r) = 1, on the inverse square root of S.

    That is a power mean of linear functions of r: it is concave and increases, so that no step from below overshoots,
    and where all h are alike the first is exact. r stays 0 where S(0) <= 1.
    """
    tiny = torch.finfo(total.dtype).tiny
    return torch.where(total > 1, r + total * (total.sqrt() - 1) / slope.clamp(min=tiny), r)


def metric_factor(h: Tensor, r: Tensor, threshold: Tensor) -> Tensor:
    """h r / (h r + t): what entries are multiplied by; 0 where r is."""
    return h * r / (h * r + threshold).clamp(min=torch.finfo(h.dtype).tiny)


def hard_threshold(y: Tensor, threshold: float) -> Tensor:
    """The prox of ``threshold^2 / 2`` for every ``z`` that is not zero: ``y`` if it is longer, else zero.

    >>> hard_threshold(torch.tensor([3.0, 4.0]), 6.0)
    tensor([0., 0.])
    """
    return torch.where(y.norm() > threshold, y, 0)


def half_space_projection(trial: Tensor, x: Tensor, epsilon: float) -> Tensor:
    """``trial``, or zero if it has left the half-space {z: <z, x> >= epsilon * ||x||^2} (OTO, arXiv 2107.07467, eq. 8).

    The half-space belongs to the point ``x`` that the trial step started from. With ``epsilon`` = 0 a unit is set to
    zero only when its step has turned it by more than a right angle.

    >>> half_space_projection(torch.tensor([0.1, 1.0]), torch.tensor([1.0, 0.0]), 0.5)
    tensor([0., 0.])
    """
    return trial * ~left_half_space(trial @ x, x @ x, epsilon)


def soft_factor(norm: Tensor, threshold: Tensor | float) -> Tensor:
    """(1 - threshold / norm) where that is positive, else 0: what the group soft threshold multiplies by."""
    return torch.where(norm > threshold, 1 - threshold / norm.clamp(min=torch.finfo(norm.dtype).tiny), 0)


def left_half_space(inner: Tensor, square: Tensor, epsilon: float) -> Tensor:
    """Whether a trial with <trial, x> = ``inner`` has left the half-space of x with ||x||^2 = ``square``."""
    return inner < epsilon * square


def soft_length(square: Tensor, threshold: Tensor) -> Tensor:
    """The norms [U] of z = argmin sum_a ||z_a - y_a||^2 / (2 t_a) + ||z||, from ``square`` [A, U] = ||y_a||^2 and
    t = ``threshold`` [A].

    The parts a of a unit take steps of different size where param groups have different learning rates; t_a is such a
    step times the penalty. Then z_a = y_a r / (r + t_a), where r = ||z|| solves sum_a ||y_a||^2 / (r + t_a)^2 = 1, or
    is zero if sum_a ||y_a||^2 / t_a^2 <= 1. With one part r = ||y|| - t: the group soft threshold.

    Newton's method on the inverse square root of the sum, which is increasing and concave: from below it never
    overshoots, and for one part the first step is exact.
    """
    t = threshold.unsqueeze(1)
    tiny = torch.finfo(square.dtype).tiny
    lengths = square.sqrt()
    if len(square) == 1:
        return (lengths - t).clamp(min=0).squeeze(0)
    r = torch.maximum((lengths - t).amax(0), square.sum(0).sqrt() - threshold.max()).clamp(min=0)
    below = (lengths / t.clamp(min=tiny)).clamp(max=1e15).square().sum(0) > 1
    for _ in range(_NEWTON):
        ratio = lengths / (r + t).clamp(min=tiny)
        whole = ratio.square().sum(0)
        slope = (ratio.square() / (r + t).clamp(min=tiny)).sum(0)
        r = torch.where(below, r + whole * (whole.sqrt() - 1) / slope.clamp(min=tiny), 0)
    return r


def dual_penalty(aligned: Tensor, norm: Tensor, square: Tensor, penalty: float, amplify: float, most: float) -> Tensor:
    """DHSPG's penalty_g (OTOv2, eq. 8) of units with <x, d> = ``aligned``, ||x|| = ``norm``, ||d||^2 = ``square``.

    Where <x, d> < 0, ||x|| shrinks above least = -<x, d> / ||x||, and the step descends along d below
    largest = -||d||^2 ||x|| / <x, d>, which is no less, by Cauchy's inequality.
    """
    least, largest = -aligned / norm, -square * norm / aligned
    wanted = (amplify * least).clamp(penalty, penalty * most)
    wanted = torch.where(wanted >= largest, (least + largest) / 2, wanted)
    return torch.where(aligned < 0, wanted, penalty)
