"""Libraries that are imported only when a network is asked of them."""

from __future__ import annotations

from niwaki.train import torchvision_cpu
from niwaki.train.errors import RunError


def import_torchvision() -> str:
    """Make torchvision importable, and return its name. timm needs it too.

    Raises:
        RunError: it is not installed.
    """
    try:
        return torchvision_cpu.load().__name__
    except ImportError as cause:
        raise RunError(str(cause)) from cause
