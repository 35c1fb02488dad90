"""Import the libraries of networks on request; torchvision also beside a CPU-only torch.

The torchvision wheels of the public index are linked against CUDA. Beside a CPU-only torch their extension cannot be
loaded, and ``import torchvision`` then fails because it annotates two undefined operators. Networks for classification
never call these operators, so it is enough to declare their schemas.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from types import ModuleType
from typing import Any

import torch

from niwaki.errors import RunError
from niwaki.networks import torchvision_cpu

_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


_declared: list[torch.library.Library] = []  # a Library takes its operators with it when it is collected


def load() -> ModuleType:
    """Import torchvision, declaring the operators of its extension where that cannot be loaded.

    Raises:
        ImportError: torchvision is not installed.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        raise ImportError("torchvision is not installed. Run `pip install torchvision`.")
    if not _declared and not _extension_loads(os.path.dirname(found.origin)):
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for schema in _SCHEMAS:
            library.define(schema)  # type: ignore[no-untyped-call]
        _declared.append(library)
    return importlib.import_module("torchvision")


def _extension_loads(directory: str) -> bool:
    for name in ("_C.so", "_C_stable.so", "_C.pyd"):
        path = os.path.join(directory, name)
        if os.path.exists(path):
            try:
                ctypes.CDLL(path)
            except OSError:
                return False
            return True
    return False


def import_torchvision() -> str:
    """Make torchvision importable, and return its name. timm needs it too.

    Raises:
        RunError: it is not installed.
    """
    try:
        return torchvision_cpu.load().__name__
    except ImportError as cause:
        raise RunError(str(cause)) from cause


def import_library(name: str, network: str) -> Any:
    """Import the library of ``network``, a name that the user gave.

    Raises:
        RunError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as cause:
        raise RunError(f"{network} needs {name}: pip install {name}.") from cause
