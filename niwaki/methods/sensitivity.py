"""How much the loss grows when a part of one layer is taken away, without any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from niwaki.core.counts import FloatArray
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.per_unit.index import unit_parameters
from niwaki.per_unit.protocol import TO_ZERO, Units
from niwaki.trace.model_state import preserved

SHARES = (0.25, 0.5, 0.75)


@torch.no_grad()
def layer_losses(space: SearchSpace, units: Units, saliency: FloatArray, loss: Callable[[], Any]) -> FloatArray:
    """The loss as it is, and with the least salient 25, 50 and 75 % of the units of one group at zero, [groups, 4], of
    all groups but those that are structures.

    ``loss()`` is called 1 + 3 * groups times, each time with the same state of the random generators. Everything is as
    it was afterwards, whatever happens inside. In a distributed training these are the
    means over its processes, all of which have to call this.

    Raises:
        MethodError: what ``loss`` returns is not a finite scalar.
    """
    weights: list[Tensor] = list(unit_parameters(space).values())
    kept = [weight.detach().clone() for weight in weights]
    nothing = np.zeros(space.num_units, dtype=bool)
    reference = _evaluated(space.model, loss)
    rows = []
    try:
        for group in space.width_groups:
            order = group.first + np.argsort(saliency[group.numbers], kind="stable")
            row = [reference]
            for share in SHARES:
                gone = nothing.copy()
                gone[order[: int(share * group.units)]] = True
                units.subset(gone).apply(TO_ZERO)
                row.append(_evaluated(space.model, loss))
                torch._foreach_copy_(weights, kept)
            rows.append(torch.stack(row))
    finally:
        torch._foreach_copy_(weights, kept)
    losses = _over_processes(torch.stack(rows)).double().cpu().numpy()
    if not np.isfinite(losses[:, 0]).all():
        raise MethodError(
            f"The loss is {losses[0, 0]}, so nothing can be compared with it: the training has diverged. Lower the "
            "learning rate, or skip bad batches."
        )
    return losses


def sensitivity(losses: FloatArray) -> FloatArray:
    """By how much the loss ratio to the reference exceeds 1 on average, over its mean among the groups: [groups].

    That is the growth of the loss itself over its mean among the groups, which is defined for any reference. A loss
    that is not finite counts as the largest that is; one that falls as one that stays.
    """
    largest = losses[np.isfinite(losses)].max()
    growth = np.where(np.isfinite(losses[:, 1:]), losses[:, 1:], largest) - losses[:, :1]
    term = growth.clip(min=0).mean(axis=1)
    mean = term.mean()
    return np.asarray(term / mean if mean > 0 else term, np.float64)


def _over_processes(losses: Tensor) -> Tensor:
    """The mean over the processes of a distributed training, each of which has looked at data of its own: all of them
    go on from the same numbers, and so choose the same."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return losses
    total = losses.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


def _evaluated(model: nn.Module, loss: Callable[[], Any]) -> Tensor:
    with preserved(model):
        value = loss()
    if isinstance(value, Tensor) and value.numel() == 1:
        return value.detach().reshape(()).float()
    if isinstance(value, float):
        return torch.tensor(value)
    what = f"a tensor of shape {list(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__qualname__}"
    raise MethodError(f"The loss must be a scalar, but {what} was returned. Reduce it to its mean, and return it.")
