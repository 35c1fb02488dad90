"""Devices by name, checked before anything is moved to them."""

from __future__ import annotations

import torch

from niwaki.errors import RunError, first_line


def usable_device(name: str | torch.device) -> torch.device:
    """The device of this name.

    Raises:
        RunError: it cannot be used here.

    >>> usable_device("cpu")
    device(type='cpu')
    """
    try:
        device = torch.device(name)
        torch.empty(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError, TypeError) as cause:
        raise RunError(f"The device {str(name)!r} cannot be used here: {first_line(cause)}") from cause
    return device
