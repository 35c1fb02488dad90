"""The directions of an optimizer's steps, whatever optimizer it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.methods.direction.decay import decay, rests
from niwaki.methods.direction.families import Held, family_of
from niwaki.methods.direction.ways import Direction, Part, difference, itself, nothing


class Directions:
    """d of some parameters, from one step of ``optimizer`` to the next. Nothing here waits for the device.

    Where the family of the optimizer does not know d, `remember` copies the parameters, less their decoupled weight
    decay, and d is (that - the new ones) / lr. Where such an optimizer moves nothing, at learning rate 0, d is the
    gradient.
    """

    def __init__(self, optimizer: Optimizer, weights: Sequence[Tensor]) -> None:
        self._optimizer, self._weights = optimizer, list(weights)
        held = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._group = [held[id(weight)] for weight in weights]
        self._copies: dict[int, Tensor] = {}
        self._before: dict[int, Tensor] = {}

    def remember(self) -> None:
        """Before a step: copy what the family does not know. The copies' memory is kept until `forget`."""
        self._before = {}
        unknown = self._unknown()
        if not unknown or rests(self._optimizer):
            return
        groups = self._optimizer.param_groups
        left = [1 - group.get("lr", 0) * decay(self._optimizer, group) for group in groups]
        for place in unknown:
            out = self._copies.get(place)
            weight, part = self._weights[place].detach(), left[self._group[place]]
            self._before[place] = self._copies[place] = torch.mul(weight, part, out=out)

    def forget(self) -> None:
        """Give the memory of the copies back."""
        self._copies, self._before = {}, {}

    def after(self) -> list[Direction]:
        """Of each parameter, after a step. Valid until something is changed in place."""
        unknown, found = set(self._unknown()), [Direction(nothing)] * len(self._weights)
        held: dict[int, Held] = {}
        for place, (weight, number) in enumerate(zip(self._weights, self._group, strict=True)):
            group, state = self._optimizer.param_groups[number], self._optimizer.state.get(weight, {})
            if place in self._before:
                parts = (self._before[place], weight.detach())
                found[place] = Direction(difference, parts, _over(group.get("lr", 0)))
            elif weight.grad is not None:
                gradient = weight.grad.to_dense() if weight.grad.is_sparse else weight.grad
                if place in unknown:
                    found[place] = Direction(itself, (gradient,))
                else:
                    held[place] = Held(group, state, weight.detach(), gradient)
        family = family_of(self._optimizer)
        if held and family is not None:
            found_by_state = family.directions(list(held.values()))
            for place, direction in zip(held, found_by_state, strict=True):
                found[place] = direction
        self._before = {}
        return found

    def _unknown(self) -> list[int]:
        family, groups = family_of(self._optimizer), self._optimizer.param_groups
        known = [family is not None and family.knows(group) for group in groups]
        return [p for p, weight in enumerate(self._weights) if not known[self._group[p]] or weight.is_complex()]


def _over(rate: float | Tensor) -> Part:
    if isinstance(rate, Tensor):
        return torch.where(rate > 0, 1 / rate, 0)
    return 1 / rate if rate else 1.0
