"""Weights of a model that was shrunk, loaded into one that is dense still: in which order the parts of a run load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from niwaki.errors import MethodError

# How many methods shrink a model when their optimizers load. No copy of a model is in it.
_DRIVEN: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()


class OrderOfLoading:
    """While it lasts, ``model`` refuses weights that fit only once its optimizer has loaded."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handle: RemovableHandle = model.register_load_state_dict_pre_hook(_refuse)  # type: ignore[no-untyped-call]
        _DRIVEN[model] = _DRIVEN.get(model, 0) + 1

    def remove(self) -> None:
        """Let go of the model."""
        self._handle.remove()
        _DRIVEN[self._model] -= 1


def _refuse(model: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """A hook of the model, and as a function of a module one that is copied and pickled with it."""
    if not _DRIVEN.get(model):
        return
    found = [
        (name, tuple(given.shape), tuple(here.shape))
        for name, here in model.named_parameters()
        if isinstance(given := state.get(prefix + name), Tensor) and given.ndim == here.ndim
    ]
    if any(there != here for _, there, here in found) and all(
        a <= b for _, there, here in found for a, b in zip(there, here, strict=True)
    ):
        name, there, here = next(one for one in found if one[1] != one[2])
        raise MethodError(
            f"These weights are of a model that was shrunk further: {name!r} is {list(there)} there and {list(here)} "
            "here. Load the optimizer first, optimizer.load_state_dict(...), whose method brings the model to the "
            "size that it had; then load the weights."
        )
