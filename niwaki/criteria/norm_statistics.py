"""Fresh statistics for norms, of the batches that a network is scored with."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.criteria.losses import Loss, loss_of


@torch.no_grad()
def refresh_norms(model: nn.Module, batches: Iterable[Any], loss_fn: Loss) -> None:
    """Let the running statistics of every BatchNorm be the means over ``batches`` (each of the same weight).

    In a network that was never trained, running means of 0 and variances of 1 let activations grow or vanish from layer
    to layer, so that a few layers have all of the curvature and the others would be emptied. All modules but norms are
    in eval mode; all are afterwards. The caller restores the model.
    """
    norms = [one for one in model.modules() if isinstance(one, _BatchNorm) and one.running_mean is not None]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # of all batches, and not of the last ones
        norm.training = True
    for batch in batches if norms else ():
        loss_of(loss_fn, model, batch)
    model.eval()
