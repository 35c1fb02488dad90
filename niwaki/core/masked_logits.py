"""Routers that never choose some experts: their logits are minus infinity while a module runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.errors import PlanError


def mask_logits(
    module: nn.Module, owner: nn.Module, leaf: str, experts: int, gone: Sequence[int]
) -> Callable[[], None]:
    """Set the logits of the experts ``gone`` to minus infinity whenever ``module`` is called, until the result is
    called.

    Logits are what an operator makes of the weight (or of a view or copy of it in another type) and of something else.
    They have the experts along their last dimension.

    Args:
        module: what makes the logits while it is called.
        owner: what holds the weight, under the name ``leaf``.
        experts: how many there are.
    """
    mask = _RouterMask(owner, leaf, experts, gone)
    if any(one.is_as(mask) for one in _masks(module)):
        return lambda: None
    handles = (
        module.register_forward_pre_hook(mask.enter),
        module.register_forward_hook(mask.leave, always_call=True),
    )

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo


def show_logits(module: nn.Module, owner: nn.Module, leaf: str) -> None:
    """Undo every `mask_logits` of a weight: experts with other numbers are there now."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, mask in [(key, _mask_of(hook)) for key, hook in hooks.items()]:
            if mask is not None and mask.is_of(owner, leaf):
                del hooks[key]
    kept = module._forward_hooks_always_called
    for key in [key for key in kept if key not in module._forward_hooks]:
        del kept[key]


def _masks(module: nn.Module) -> list[_RouterMask]:
    found = map(_mask_of, module._forward_pre_hooks.values())
    return [mask for mask in found if mask is not None]


def _mask_of(hook: Any) -> _RouterMask | None:
    bound = getattr(hook, "__self__", None)
    return bound if isinstance(bound, _RouterMask) else None


@final
class _RouterMask:
    """The hooks on a module. The weight is looked up by name when the module runs: a copy of it has its own."""

    def __init__(self, owner: nn.Module, leaf: str, experts: int, gone: Sequence[int]) -> None:
        self._owner, self._leaf = owner, leaf
        self._experts, self._gone = experts, tuple(gone)
        self._open: list[_MaskedLogits] = []

    def is_of(self, owner: nn.Module, leaf: str) -> bool:
        """Whether it hides logits of this weight."""
        return self._owner is owner and self._leaf == leaf

    def is_as(self, other: _RouterMask) -> bool:
        """Whether both do the same."""
        return self.is_of(other._owner, other._leaf) and self._gone == other._gone and self._experts == other._experts

    def enter(self, module: nn.Module, args: Any) -> None:
        mode = _MaskedLogits(self._owner._parameters[self._leaf], self._experts, self._gone)
        mode.__enter__()  # type: ignore[no-untyped-call]
        self._open.append(mode)

    def leave(self, module: nn.Module, args: Any, result: Any) -> None:
        mode = self._open.pop()
        mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        if result is not None and not mode.masked:  # after an error, there is no result
            raise PlanError(
                f"No operator made logits of {self._leaf!r} while {type(module).__qualname__} ran, so that its router "
                "cannot be kept from choosing experts."
            )


class _MaskedLogits(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs below autograd: what is written into logits there has a gradient of zero behind any softmax or top-k."""

    def __init__(self, weight: Tensor | None, experts: int, gone: Sequence[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.masked = False
        self._experts, self._gone = experts, list(gone)
        self._made_of_weight = {id(weight): weight}  # held, so that no identity is used again

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        given = [one for one in (*args, *(kwargs or {}).values()) if isinstance(one, Tensor)]
        own = [one for one in given if id(one) in self._made_of_weight]
        if own and isinstance(made, Tensor):
            if len(own) == len(given):
                self._made_of_weight[id(made)] = made
            else:
                self._mask(made)
        return made

    def _mask(self, logits: Tensor) -> None:
        if logits.ndim == 0 or logits.shape[-1] != self._experts or not logits.is_floating_point():
            raise PlanError(
                f"What a router makes of its weight has the shape {list(logits.shape)}, and not {self._experts} logits "
                "along its last dimension."
            )
        self.masked = True
        if self._gone:
            logits[..., torch.tensor(self._gone, device=logits.device)] = float("-inf")
