"""What a plan of a method must not leave unsaid: that the method has not ended, or that its zeros are none."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.space import BoolArray, SearchSpace


def warn_of(label: str, not_ended: str | None, space: SearchSpace, zero: BoolArray) -> None:
    """Warn the caller of a method's ``plan``, which removes units that must be ``zero`` [num_units] in the model."""
    for caveat in (not_ended, not_zero(label, space, zero)):
        if caveat is not None:
            warnings.warn(caveat, stacklevel=3)


def not_ended(label: str, optimizer: Optimizer, step: int, until: int, left: str) -> str:
    """Why a plan that is made after ``step`` steps of ``until`` does not do what was asked for; ``left``: what is
    missing. No number in it changes from step to step, so that a loop that looks at plans is told once."""
    if not step:
        return (
            f"{label} has seen no step of its {type(optimizer).__qualname__}, so this plan removes nothing. It follows "
            "the calls of step() of the very optimizer it was built with: build it with the one that your loop steps."
        )
    return (
        f"{label} has not reached the end of its schedule, step {until}, so this plan {left}. print(method) tells "
        f"where it is. Go on training until step {until}, or build the method with a schedule that ends earlier. Steps "
        "that a gradient scaler skips do not count: let the schedule end some steps before the training does."
    )


@torch.no_grad()
def not_zero(label: str, space: SearchSpace, zero: BoolArray) -> str | None:
    """What is wrong if units that a method has set to ``zero`` [num_units] hold something; None if all is well."""
    parameters, gone = dict(space.model.named_parameters()), np.append(zero, False)
    first, held, largest = None, np.zeros(space.num_units + 1, dtype=bool), 0.0
    for place in space.places:
        rows = np.flatnonzero(gone[place.units].any(axis=1))
        weight: Tensor | None = parameters.get(place.tensor)
        if weight is None or not (place.parameter and place.driven and len(rows)):
            continue
        values = weight.index_select(place.dim, torch.from_numpy(rows).to(weight.device)).abs()
        most = values.transpose(0, place.dim).flatten(1).amax(1) if values.dim() > 1 else values
        full = most.float().cpu().numpy()
        if (full != 0).any():
            first = first or place.tensor
            largest = max(largest, float(np.nan_to_num(full, nan=np.inf).max()))
            held[place.units[rows[full != 0]]] = True
    if first is None:
        return None
    return (
        f"{int((held & gone)[:-1].sum())} of the {int(zero.sum())} units that {label} has set to zero are not zero in "
        f"the model, first in {first!r}, by up to {largest:.2g}: their weights were written after the step of the "
        "optimizer, by a wrapper of it (Lookahead), by averages copied into the model, by weights loaded without the "
        "optimizer, or by an optimizer that the method does not hang on. The cut network computes what this one would "
        "with zeros there. To have them, build the method with the outermost optimizer, or take one more step with "
        "its own."
    )
