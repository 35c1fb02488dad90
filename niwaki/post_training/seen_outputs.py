"""The outputs that a loss function gets from a network, for what compares outputs and runs it as the loss does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from niwaki.criteria.losses import Loss, loss_of
from niwaki.errors import MethodError
from niwaki.post_training.distillation import Forward, evaluated, logits_of
from niwaki.trace.model_state import preserved

_INSTEAD = "Call niwaki.refine(space, scores, budget, batches, forward): forward says how to get the logits."


def outputs_for(loss_fn: Loss) -> Forward:
    """``forward(model, batch)``: what the model returns where ``loss_fn(model, batch)`` calls it.

    Raises, when it is called:
        MethodError: the model is not called exactly once.
    """

    def forward(model: nn.Module, batch: Any) -> Any:
        seen: list[Any] = []
        handle = model.register_forward_hook(lambda _, args, output: seen.append(output))
        try:
            loss_of(loss_fn, model, batch)
        finally:
            handle.remove()
        if len(seen) != 1:
            raise MethodError(
                f"refine= compares what the network returns for each batch, and loss_fn calls it {len(seen)} times for "
                f"one. {_INSTEAD}"
            )
        return seen[0]

    return forward


def check_outputs(model: nn.Module, batches: Sequence[Any], forward: Forward) -> None:
    """Raise `MethodError` unless there are logits of the first batch; the model is as before."""
    with preserved(model), torch.no_grad(), evaluated(model):
        output = forward(model, batches[0])
    try:
        logits_of(model, output)
    except MethodError as cause:
        raise MethodError(
            f"refine= compares logits, and the {type(model).__qualname__} gives loss_fn a "
            f"{type(output).__qualname__}, which is not and has no tensor of logits. {_INSTEAD}"
        ) from cause
