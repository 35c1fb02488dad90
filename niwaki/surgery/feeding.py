"""Data that a repair looks at: whatever a loader yields, run through the network one batch after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from niwaki.errors import MethodError, TraceError
from niwaki.trace.tracer import example_calls

Forward = Callable[[nn.Module, Any], object]  # (model, batch): runs the model on the batch


def feed(model: nn.Module, batches: Iterable[Any], forward: Forward | None, first: int = 1) -> None:
    """Run ``model`` on all ``batches``, without gradients; messages count them from ``first``.

    Raises:
        MethodError: there are no batches.
        TraceError: the model does not run on one of them.
    """
    number = 0
    with torch.no_grad():
        for number, batch in enumerate(batches, first):
            try:
                if forward is not None:
                    forward(model, batch)
                else:
                    for args, kwargs in example_calls(batch):
                        model(*args, **kwargs)
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as cause:
                raise TraceError(
                    f"The model does not run on batch {number}: {type(cause).__qualname__}: {cause}. A tensor or tuple "
                    "is passed by position, a dict by keywords; where a batch holds labels too, say how to run it: "
                    "forward=lambda model, batch: model(batch[0])."
                ) from cause
    if not number:
        raise MethodError("There are no batches to look at. Pass some inputs; a loader that is used up gives none.")
