"""Find out whether a network computes something else while gradients are recorded.

The analysis runs a model without gradients. Code that asks for them (``h.requires_grad``, ``torch.is_grad_enabled()``)
may take another branch in training. Most does not: it saves memory, or takes a faster kernel. So calls that ask are
noted; only a model that asks runs twice more, with gradients and without, and its outputs are compared.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Lock
from types import FrameType

import numpy as np
import torch

from niwaki.core.libraries import TORCH, is_of
from niwaki.core.location import Location
from niwaki.trace.eager import eagerly
from niwaki.trace.fake import is_fake
from niwaki.trace.inventory import Inventory
from niwaki.trace.model_state import preserved
from niwaki.trace.structures import ExampleCall, map_tensors, others_in, tensors_in
from niwaki.trace.writes import UndoneWrites

_TOLERANCE = 1e-3  # relative; kernels with and without gradients round differently
_lock = Lock()
_told: list[Callable[[], None]] = []


def asked_by(frame: FrameType) -> bool:
    """Whether a frame runs a network's code; torch's own code computes the same with gradients and without."""
    return not is_of(frame.f_code, TORCH)


@contextmanager
def grad_mode_watched(tell: Callable[[], None]) -> Iterator[None]:
    """Inside, ``tell`` is called when a network's code calls `torch.is_grad_enabled`, which torch's modes do not
    see."""
    with _lock:
        _told.append(tell)
        if len(_told) == 1:
            torch.is_grad_enabled = _asked
    try:
        yield
    finally:
        with _lock:
            _told.remove(tell)
            if not _told:
                torch.is_grad_enabled = _is_grad_enabled


_is_grad_enabled = torch.is_grad_enabled


def _asked() -> bool:
    if asked_by(sys._getframe(1)):
        for tell in tuple(_told):
            tell()
    return _is_grad_enabled()


def gradient_notes(model: torch.nn.Module, calls: Sequence[ExampleCall], asked: Location | None) -> tuple[str, ...]:
    """A note if the code at ``asked`` makes the model compute something else in train mode with gradients, or if that
    cannot be found out, as on the meta device. The model and the inputs are left as they were."""
    if asked is None:
        return ()
    asks = f"The code at {asked} asks whether gradients are recorded. The analysis ran the model without"
    if any(tensor.is_meta or is_fake(tensor) for tensor in (*Inventory.of(model).tensors, *tensors_in(list(calls)))):
        return (f"{asks}; whether another network runs with them cannot be found out without values.",)
    try:
        differs = any(not _alike(*(_outputs(model, call, grad) for grad in (False, False, True))) for call in calls)
    except Exception as error:  # noqa: BLE001 - of the user's code
        return (f"{asks}; in train mode, with them, it does not run ({type(error).__qualname__}).",)
    if not differs:
        return ()
    return (
        f"{asks}; in train mode, with them, it computes something else. What only runs then was not analysed and may "
        "not fit the cut network: make it depend on the mode (`self.training`), which is analysed.",
    )


@eagerly()
def _outputs(model: torch.nn.Module, call: ExampleCall, grad: bool) -> list[torch.Tensor]:
    """The outputs of the model in train mode, from the same state and with the same random numbers each time."""
    inventory = Inventory.of(model)
    with preserved(model, others_in(call)), torch.inference_mode(False), torch.set_grad_enabled(grad):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        for _, module in inventory.modules:
            module.training = True
        args, kwargs = map_tensors(call, lambda tensor: tensor.detach().clone().requires_grad_(tensor.requires_grad))
        with UndoneWrites([parameter for _, parameter in inventory.parameters]):
            return [tensor.detach().clone() for tensor in tensors_in(model(*args, **kwargs))]


def _alike(without: list[torch.Tensor], again: list[torch.Tensor], with_gradients: list[torch.Tensor]) -> bool:
    """Whether no output changes with gradients; also True where two runs without them differ, which can show
    nothing."""
    return not _same(without, again) or _same(without, with_gradients)


def _same(ours: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(ours) == len(others) and all(map(_close, ours, others))


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.shape != other.shape or one.dtype is not other.dtype:
        return False
    one, other = one.to_dense(), other.to_dense()
    if not (one.is_floating_point() or one.is_complex()) or not one.numel():
        return torch.equal(one, other)
    allowed = max(_TOLERANCE, 8 * torch.finfo(one.dtype).eps)
    scale = float(other.abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(one, other, rtol=allowed, atol=allowed * scale, equal_nan=True)
