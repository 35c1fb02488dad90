"""The scores of a classifier: check that they fit the data, and measure the accuracy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from niwaki.core.modes import eval_mode
from niwaki.errors import RunError
from niwaki.networks import ImageTask
from niwaki.train.batches import Batches


def accuracy(model: nn.Module, batches: Batches) -> float:
    """The fraction of the test images whose largest score is the right class, in eval mode."""
    with eval_mode(model), torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches.test())
    return right / len(batches.images.test_y)


def check_scores(model: nn.Module, x: Tensor, task: ImageTask, name: str) -> None:
    """Run the model once before anything else, and raise one sentence if it does not fit the data."""
    size = "x".join(map(str, x.shape[1:]))
    try:
        with eval_mode(model), torch.no_grad():
            scores: object = model(x)
    except (RuntimeError, ValueError, TypeError, AssertionError, IndexError) as cause:
        raise RunError(f"The model {name!r} cannot take images of {size}: {_first_line(cause)}") from cause
    if not isinstance(scores, Tensor):
        raise RunError(f"The model {name!r} returns a {type(scores).__name__}; it must return scores [batch, classes].")
    if scores.shape != (len(x), task.classes):
        raise RunError(
            f"The model {name!r} returns scores of shape {list(scores.shape)} for {len(x)} images of {size}, but the "
            f"data have {task.classes} classes: {[len(x), task.classes]} is needed."
        )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
