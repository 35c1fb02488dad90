"""Whether the scales that a plan was learnt with are in given weights."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from niwaki.core.edits import ScaledBefore
from niwaki.core.names import named_parameters
from niwaki.core.plan import Plan

_SAME = 1e-6  # relative: sums of one tensor on two devices


def total(weight: Tensor) -> float:
    """What the absolute values of a tensor sum to."""
    return float(weight.detach().abs().sum(dtype=torch.float64))


def warn_of_unscaled(model: nn.Module, plan: Plan) -> None:
    """Warn if a tensor of ``model`` is as it was before the scales of ``plan`` were learnt."""
    parameters = dict(named_parameters(model)) if plan.edits_of(ScaledBefore) else {}
    for edit in plan.edits_of(ScaledBefore):
        weight = parameters.get(edit.tensor)
        if weight is None or not _holds_values(weight):
            continue
        found = total(weight)
        if abs(found - edit.unscaled) <= _SAME * edit.unscaled and abs(found - edit.scaled) > abs(
            found - edit.unscaled
        ):
            warnings.warn(
                f"The plan was learnt together with scales of the units that stay, and {edit.tensor!r} is as it was "
                "without them. Put them into the weights before the cut, with fold_() of what has learnt them: "
                "niwaki.cut(masks.fold_(), plan). The network has been cut all the same.",
                stacklevel=3,
            )


def _holds_values(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and not tensor.is_meta and not is_traceable_wrapper_subclass(tensor)
