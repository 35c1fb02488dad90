"""The weights of a network that was trained before: a directory of `niwaki.save`, or a file of a state dictionary."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from niwaki.errors import RunError, first_line
from niwaki.io import load

_READERS: Mapping[str, Callable[[Path], Any]] = {
    ".safetensors": load_file,
    ".pt": lambda path: torch.load(path, map_location="cpu", weights_only=True),
    ".pth": lambda path: torch.load(path, map_location="cpu", weights_only=True),
}


def with_weights(model: nn.Module, source: Path) -> nn.Module:
    """``model`` with the weights of ``source``: the small network of a directory that niwaki wrote, or ``model`` itself
    with the state dictionary of a .safetensors, .pt or .pth file.

    Raises:
        RunError: there is no such file, or it holds something else than the tensors of this network.
        FileFormatError: the directory is damaged, or of another network.
    """
    if source.is_dir():
        return load(model, source)
    if not source.is_file():
        raise RunError(f"There are no weights at {str(source)!r}. Give a file, or a directory that niwaki wrote.")
    reader = _READERS.get(source.suffix)
    if reader is None:
        raise RunError(
            f"The weights {str(source)!r} are of no known kind. Give a {', '.join(_READERS)} file of a state "
            "dictionary, or a directory that niwaki wrote."
        )
    try:
        state = reader(source)
    except pickle.UnpicklingError as cause:
        if "global" not in str(cause).lower():  # it is no pickle at all
            raise RunError(f"The weights {str(source)!r} cannot be read: {first_line(cause)}") from cause
        raise RunError(
            f"{str(source)!r} holds Python objects, such as a whole model, and these run code when they are read. Save "
            "the tensors alone: torch.save(model.state_dict(), path)."
        ) from cause
    except Exception as cause:  # a file that is no state dictionary fails in torch with any error
        why = f"{type(cause).__name__}: {first_line(cause)}"
        raise RunError(f"The weights {str(source)!r} cannot be read: {why}") from cause
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise RunError(
            f"{str(source)!r} holds no state dictionary, tensors by name. Save the network's own: "
            "torch.save(model.state_dict(), path)."
        )
    own = model.state_dict()
    for name in (*own, *state):
        here, there = (list(values[name].shape) if name in values else "not there" for values in (own, state))
        if here != there:
            raise RunError(
                f"The weights {str(source)!r} are of another network: {name!r} is {there} in the file and {here} in "
                "the model."
            )
    model.load_state_dict(state)
    return model
