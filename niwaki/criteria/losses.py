"""Compute the loss of a batch, from a function of the user or a loss of torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import MethodError, NiwakiError, first_line

Loss = Callable[[Any, Any], Tensor]  # a function of the model and a batch; or a loss of torch, of outputs and labels

_EXPECTED = (
    "It is given the model and one batch, and returns the scalar loss. A loss of outputs and labels that torch "
    "defines, such as torch.nn.CrossEntropyLoss(), is accepted too, for batches (inputs, labels)."
)


def loss_of(loss_fn: Loss, model: nn.Module, batch: Any) -> Tensor:
    """``loss_fn(model, batch)``; for a loss that torch defines, ``loss_fn(model(inputs), labels)``.

    Raises:
        MethodError: ``loss_fn`` cannot be called like that, or the batch is not a pair of inputs and labels; or the
            model does not run on the inputs, or the loss of torch on outputs and labels.
    """
    if not callable(loss_fn):
        raise MethodError(f"loss_fn={loss_fn!r} is not a function. {_EXPECTED}")
    if _compares_outputs(loss_fn):
        return _of_outputs(loss_fn, model, batch)
    try:
        inspect.signature(loss_fn).bind(model, batch)
    except ValueError:
        pass  # some built-in functions have no signature
    except TypeError as cause:
        raise MethodError(f"loss_fn cannot be called as loss_fn(model, batch): {cause}. {_EXPECTED}") from cause
    try:
        return loss_fn(model, batch)
    except TypeError as cause:
        raise MethodError(f"loss_fn(model, batch) failed with a TypeError: {first_line(cause)}. {_EXPECTED}") from cause


def check_loss(loss: object, count: int) -> None:
    """Raise `MethodError` unless ``loss``, that of batch number ``count``, is a finite scalar with a gradient."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__qualname__}"
        raise MethodError(
            f"loss_fn must return the scalar loss of a batch, but returned {what}. Reduce it to its mean."
        )
    if not loss.requires_grad:
        raise MethodError(
            "The loss that loss_fn returned does not depend on the model's parameters, so there is no gradient to "
            "score with. Compute it from the model passed to loss_fn, without torch.no_grad() and without .item()."
        )
    if not torch.isfinite(loss):
        raise MethodError(
            f"The loss of batch {count} is {loss.item()}, so its gradient cannot score units. "
            "Look for non-finite data or a diverged model."
        )


def _compares_outputs(loss_fn: Loss) -> bool:
    """Whether a loss is a module or a function of torch: these compare outputs and take no model."""
    while isinstance(loss_fn, partial):
        loss_fn = loss_fn.func
    return isinstance(loss_fn, nn.Module) or (getattr(loss_fn, "__module__", None) or "").partition(".")[0] == "torch"


def _of_outputs(loss_fn: Any, model: nn.Module, batch: Any) -> Tensor:
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise MethodError(
            f"loss_fn is a loss of outputs and labels ({loss_fn!r}), so every batch must be a pair (inputs, labels), "
            f"but one is a {type(batch).__qualname__}. Pass a function loss_fn(model, batch) that returns the loss."
        )
    inputs, labels = batch
    with telling(
        "The model does not run on the inputs of a batch", "Batches are pairs (inputs, labels), in this order."
    ):
        if isinstance(inputs, Mapping):
            outputs = model(**inputs)
        else:
            outputs = model(*inputs) if isinstance(inputs, (tuple, list)) else model(inputs)
    if not isinstance(outputs, Tensor):
        raise MethodError(
            f"loss_fn is a loss of outputs and labels ({loss_fn!r}), and the model returns a "
            f"{type(outputs).__qualname__}, not a tensor. Pass a function loss_fn(model, batch) that picks the tensor."
        )
    shape, kind = list(outputs.shape), str(getattr(labels, "dtype", type(labels).__qualname__)).removeprefix("torch.")
    with telling(
        f"{loss_fn!r} fails on outputs of shape {shape} and labels of type {kind}",
        "Are these the labels, and are there as many classes as outputs?",
    ):
        loss: Tensor = loss_fn(outputs, labels)
    return loss


@contextmanager
def telling(what: str, then: str) -> Iterator[None]:
    """Errors that torch raises for wrong inputs become a `MethodError`, between ``what`` fails and what to do ``then``;
    those of niwaki and of memory stay what they are."""
    try:
        yield
    except (NiwakiError, torch.OutOfMemoryError):
        raise
    except (RuntimeError, TypeError, ValueError, LookupError) as cause:
        raise MethodError(f"{what}: {type(cause).__qualname__}: {first_line(cause).rstrip('.')}. {then}") from cause
