"""Affinity propagation among the units of a group (Frey and Dueck 2007): which of them stand for which others."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.errors import MethodError

BETAS = tuple(2.0**power for power in range(-3, 4))
MOST = 4096  # units of a group: every message is a table of all pairs
_DAMPING, _PASSES, _STABLE = 0.7, 200, 15


def persistence(x: Tensor) -> Tensor:
    """For how many of `BETAS` each of the vectors ``x`` [units, entries] is an exemplar, [units]; and a part of one
    more, by its place in the order of how near all are to it.

    With similarities s_ik = -||x_i - x_k||^2 a unit is an exemplar as soon as the others gain more by it than it costs:
    beta times their median (a preference of beta * median(s)). So it is comparable between groups, where beta is the
    same number and the number of exemplars is the group's own.

    Raises:
        MethodError: there are more than `MOST` units.

    >>> persistence(torch.tensor([[0.0], [0.1], [0.2], [9.0]])).topk(2).indices
    tensor([3, 1])
    """
    units = len(x)
    if units > MOST:
        raise MethodError(
            f"The criterion 'exemplar' compares all pairs of units of a group, and one has {units:,}: more than "
            f"{MOST:,} are refused, since that takes gigabytes. Choose another criterion, or pin this group with "
            "`ignored`."
        )
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    if units == 1:
        return x.new_full((1,), len(BETAS))
    similar = -torch.cdist(x, x).square()
    apart = -similar[~torch.eye(units, dtype=torch.bool, device=x.device)]
    scale = next((float(value) for value in (apart.median(), apart.mean()) if value > 0), 1.0)
    earlier = torch.arange(units, device=x.device) / units * 1e-6  # of two that are alike, the first one
    count, total = x.new_zeros(units), x.new_zeros(units)
    for beta in BETAS:
        similar.diagonal().copy_(-(beta * (1 + earlier)) * scale)
        found = evidence(similar)
        count += found > 0
        total += found
    return count + total.argsort(stable=True).argsort() / units


def evidence(similar: Tensor) -> Tensor:
    """r(k, k) + a(k, k) of each unit, positive for exemplars, from the similarities [units, units] with the preferences
    on their diagonal:

        r(i, k) <- s(i, k) - max over k' != k of a(i, k') + s(i, k')
        a(i, k) <- min(0, r(k, k) + sum over i' not in {i, k} of max(0, r(i', k)))
        a(k, k) <- sum over i' != k of max(0, r(i', k))

    damped, until the exemplars have been the same for some passes.
    """
    r, a = torch.zeros_like(similar), torch.zeros_like(similar)
    rows = torch.arange(len(similar), device=similar.device)
    before, same = torch.zeros_like(rows, dtype=torch.bool), 0
    for _ in range(_PASSES):
        best, second = (a + similar).topk(2, dim=1)[0].unbind(1)
        place = (a + similar).argmax(1)
        largest = best.unsqueeze(1).repeat(1, len(similar))
        largest[rows, place] = second
        r = _DAMPING * r + (1 - _DAMPING) * (similar - largest)
        gains = r.clamp(min=0)
        gains.diagonal().copy_(r.diagonal())
        new = gains.sum(0, keepdim=True) - gains
        own = new.diagonal().clone()
        new = new.clamp(max=0)
        new.diagonal().copy_(own)
        a = _DAMPING * a + (1 - _DAMPING) * new
        found = r.diagonal() + a.diagonal()
        same = same + 1 if bool(found.gt(0).equal(before)) else 0
        before = found > 0
        if same >= _STABLE and bool(before.any()):
            break
    return found
