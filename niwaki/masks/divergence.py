"""How far the outputs of a masked network are from those of the dense one, as distributions over classes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import MethodError

Pick = Callable[[Any], Tensor]  # from what a model returns to logits [..., classes]
_IMAGE = 4  # dimensions of a batch of maps, whose classes are dimension 1

_INSTEAD = (
    "Pass outputs=, a function from what the model returns to logits [..., classes], or divergence=0, which leaves the "
    "outputs of the dense network out."
)


@contextmanager
def recorded(model: nn.Module) -> Iterator[list[Any]]:
    """A list to which everything is added that ``model`` returns inside."""
    found: list[Any] = []
    handle = model.register_forward_hook(lambda _, __, output: found.append(output))
    try:
        yield found
    finally:
        handle.remove()


def divergence(dense: Sequence[Any], masked: Sequence[Any], pick: Pick | None) -> Tensor:
    """KL(dense || masked), a scalar: the mean over all positions of all calls of the model.

    Raises:
        MethodError: the model was not called, not equally often, or returned something without logits.

    >>> logits = torch.tensor([[0.0, 1.0]])
    >>> float(divergence([logits], [logits], None))
    0.0
    """
    if not dense or len(dense) != len(masked):
        times = "does not call the model itself" if not dense else "does not call the model equally often each time"
        raise MethodError(f"loss_fn {times}, so that the outputs of two networks cannot be compared. {_INSTEAD}")
    found = [_of_one(*(_logits(one, pick) for one in pair)) for pair in zip(dense, masked, strict=True)]
    return torch.stack(found).mean()


def _of_one(dense: Tensor, masked: Tensor) -> Tensor:
    p, q = (logits.float().log_softmax(-1) for logits in (dense.detach(), masked))
    return (p.exp() * (p - q)).sum(-1).mean()


def _logits(output: Any, pick: Pick | None) -> Tensor:
    """The logits in what a model has returned, [..., classes]."""
    if pick is not None:
        return pick(output)
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", output)
    if not isinstance(found, Tensor) or not found.is_floating_point() or not found.dim():
        raise MethodError(f"The model returns a {type(output).__qualname__} without logits. {_INSTEAD}")
    return found.movedim(1, -1) if found.dim() >= _IMAGE else found
