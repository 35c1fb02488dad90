"""Weights of a model that was shrunk, loaded into one that is dense still: in which order the parts of a run load."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from niwaki.errors import MethodError

_DRIVEN: WeakSet[nn.Module] = WeakSet()  # models whose method shrinks them when its optimizer loads; no copy of them


class OrderOfLoading:
    """While it lasts, ``model`` refuses weights that fit only once its optimizer has loaded."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._handle: RemovableHandle = model.register_load_state_dict_pre_hook(_refuse)  # type: ignore[no-untyped-call]
        _DRIVEN.add(model)

    def remove(self) -> None:
        """Let go of the model."""
        self._handle.remove()
        _DRIVEN.discard(self._model)


def _refuse(model: nn.Module, state: Mapping[str, Any], prefix: str, *_: Any) -> None:
    """A hook of the model, and as a function of a module one that is copied and pickled with it."""
    if model not in _DRIVEN:
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
