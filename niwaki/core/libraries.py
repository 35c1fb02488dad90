"""Tell code of torch and of einops from code of a model."""

from __future__ import annotations

import os
from importlib.util import find_spec
from types import CodeType


def _directory(library: str) -> str:
    """The directory of a library's files, with a separator at the end; for a missing library, a name that no file has.

    Without the separator, files of torchvision would count as torch's.
    """
    spec = find_spec(library)
    places = spec.submodule_search_locations if spec is not None else None
    return os.path.join(next(iter(places)), "") if places else os.path.join("<not installed>", library, "")


TORCH = _directory("torch")
EINOPS = _directory("einops")


def is_of(code: CodeType, library: str) -> bool:
    """Whether code belongs to the library in the directory ``library``.

    >>> import torch
    >>> is_of(torch.split.__code__, TORCH)
    True
    """
    return code.co_filename.startswith(library)
