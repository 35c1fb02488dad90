"""The check that the gates of units mean what a mask is to mean, on a batch of the user's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.space import Group, SearchSpace
from niwaki.errors import MethodError
from niwaki.per_unit.unit_gates import Gates
from niwaki.trace.model_state import drawing_alike

_CLOSE = 1e-4  # relative: between the two lie zeros in other places of the same sums


@torch.no_grad()
def check_gates(
    space: SearchSpace, gates: Gates, loss: Callable[[nn.Module], Any], what: str = "the loss", random: str = "loss_fn"
) -> None:
    """Compare the loss under a mask with that of the network whose masked units are at zero, which is what a cut
    network computes. ``what``: a name for the number that ``loss`` returns; ``random``: for what may draw by chance.

    Raises:
        MethodError: the two differ; the message names the first group for which they do.
    """
    groups = [group for group in space.width_groups if group.inexact is None]
    both = _losses(gates, _half(space, groups), loss)
    if both is None or _close(*both):
        return
    for group in groups:
        both = _losses(gates, _half(space, [group]), loss)
        if both is not None and not _close(*both):
            break
    else:
        group = groups[0]
    assert both is not None
    raise MethodError(
        f"The group {group.name!r} cannot have gates: with half of its units multiplied by zero where they are read "
        f"{what} is {both[0]:.6g}, and with these units at zero it is {both[1]:.6g}. Something else reads them. Pin "
        "the group with `ignored` when you build the search space, or use a method that scores units (niwaki.HESSO). "
        f"If {random} draws random numbers from a generator of its own, let it not."
    )


def _half(space: SearchSpace, groups: list[Group]) -> Tensor:
    """A mask that keeps every other unit of ``groups``, and everything else."""
    keep = np.ones(space.num_units, dtype=np.float32)
    for group in groups:
        keep[group.first + 1 : group.first + group.units : 2] = 0
    return torch.from_numpy(keep).to(next(space.model.parameters()).device)


def _losses(gates: Gates, mask: Tensor, loss: Callable[[nn.Module], Any]) -> tuple[float, float] | None:
    """The loss under a mask and with its units at zero, from the same random numbers; None where it is not a finite
    scalar, which others refuse."""
    found = []
    for run in (gates.value, gates.zeroed):
        with drawing_alike():
            found.append(run(mask, loss))
    if not all(isinstance(value, Tensor) and value.numel() == 1 and bool(value.isfinite()) for value in found):
        return None
    masked, zeroed = (float(value) for value in found)
    return masked, zeroed


def _close(masked: float, zeroed: float) -> bool:
    return abs(masked - zeroed) <= _CLOSE * max(abs(masked), abs(zeroed), _CLOSE)
