"""Gradients of tensors that no optimizer holds, of those backward passes whose gradients it will consume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn


@final
class BackwardPasses:
    """Adds up the gradients of ``values`` over the backward passes between two steps, as those of parameters are.

    Where a loop throws the gradients of parameters away (``zero_grad`` without a step, for a batch that is left out),
    nobody tells ``values``. ``witnesses``, a few small parameters, do: their gradients were there after a pass, and
    are None or zero when the next pass adds to them. Then only that pass and later ones count.

    Nothing here waits for the device.
    """

    def __init__(self, values: nn.Parameter, witnesses: Sequence[nn.Parameter]) -> None:
        self._values, self._witnesses = values, tuple(witnesses)
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._seen: dict[int, Tensor] = {}
        self._of_pass: dict[int, Tensor] = {}  # by the number that autograd has given to the pass, in their order
        self._told: dict[int, list[Tensor]] = {}  # by pass: of each witness, whether it had a gradient, and lost it
        self.count = 0

    def attach(self) -> None:
        """Look at all backward passes from now on."""
        self._handles.append(_hook(self._values.register_hook, self._passed))
        for place, one in enumerate(self._witnesses):
            self._handles.append(_hook(one.register_hook, _Place(self._before, place)))
            self._handles.append(_hook(one.register_post_accumulate_grad_hook, _Place(self._after, place)))

    def detach(self) -> None:
        """Look no more, and forget."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.forget()

    def forget(self) -> None:
        """The step is over."""
        self._values.grad = None
        self._seen, self._of_pass, self._told, self.count = {}, {}, {}, 0

    def of_witnesses(self) -> list[tuple[Tensor, Tensor]]:
        """For each witness the gradient that the last pass has left, and the one that is there now."""
        pairs = [(seen, self._witnesses[place].grad) for place, seen in self._seen.items()]
        return [(a, b) for a, b in pairs if b is not None and not b.is_sparse and a.shape == b.shape]

    def total(self) -> Tensor | None:
        """The gradient of ``values`` over the passes that count; None if none has reached them."""
        found: Tensor | None = None
        for number, gradient in self._of_pass.items():
            if found is None:
                found = gradient
                continue
            told = self._told.get(number)
            if told:
                had, lost = torch.stack([one.to(gradient.device) for one in told]).sum(0)
                found = torch.where((had > 0) & (had == lost), 0, found)
            found = found + gradient
        return found

    def mean(self) -> Tensor | None:
        """The mean over all passes, for a closure, which zeroes gradients before each."""
        return torch.stack([*self._of_pass.values()]).sum(0) / self.count if self.count else None

    def _passed(self, gradient: Tensor) -> None:
        number, self.count = torch._C._current_graph_task_id(), self.count + 1
        before, gradient = self._of_pass.get(number), gradient.detach()
        self._of_pass[number] = gradient.clone() if before is None else before + gradient

    def _before(self, place: int, gradient: Tensor) -> None:
        seen = self._seen.get(place)
        if seen is None:
            return
        now, had = self._witnesses[place].grad, (seen != 0).any()
        lost = had if now is None else had & (now == 0).all()
        self._told.setdefault(torch._C._current_graph_task_id(), []).append(torch.stack([had, lost]))

    def _after(self, place: int, witness: Tensor) -> None:
        if witness.grad is not None and not witness.grad.is_sparse:
            self._seen[place] = witness.grad.detach().clone()


def _hook(register: Callable[..., Any], hook: Callable[[Tensor], None]) -> torch.utils.hooks.RemovableHandle:
    found: torch.utils.hooks.RemovableHandle = register(hook)
    return found


class _Place:
    """A hook that knows which witness it is of."""

    def __init__(self, hook: Callable[[int, Tensor], None], place: int) -> None:
        self._hook, self._place = hook, place

    def __call__(self, given: Tensor) -> None:
        self._hook(self._place, given)
