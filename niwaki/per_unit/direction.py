"""The direction in which an optimizer moved: read from its state where the optimizer is known, else from two iterates.

Decoupled weight decay is not part of the direction.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.errors import MethodError

Part = Tensor | float


EXACT = frozenset({torch.float32, torch.float64})  # no sum of many numbers needs a wider type


DirectionFormula = Callable[
    [Sequence[Part], Tensor], Tensor
]  # entry by entry; the memory, of the result's shape, may be used


@dataclass(frozen=True, slots=True, eq=False)
class Direction:
    """d = ``scale`` * ``way``(``parts``).

    A part is a tensor of the parameter's shape, or a number for all of its entries, which may be a tensor without
    dimensions: then nothing waits for the device. The scale is such a number too; that of `joined` vectors may be a
    tensor of their shape.
    """

    way: DirectionFormula
    parts: tuple[Part, ...] = ()
    scale: Part = 1.0

    def at(self, rows: slice, memory: Tensor) -> Tensor:
        """``way`` of these rows, given memory for it, without the scale. The result may lie in that memory, or be a
        part itself, which is not to be changed."""
        return self.way(
            [part[rows] if isinstance(part, Tensor) and part.dim() else part for part in self.parts], memory
        )

    def whole(self, like: Tensor) -> Tensor:
        """d, of the shape of ``like``."""
        return self.way(self.parts, torch.empty_like(like)) * self.scale


def itself(parts: Sequence[Part], memory: Tensor) -> Tensor:
    """The only part."""
    (part,) = parts
    assert isinstance(part, Tensor)
    return part


def nothing(parts: Sequence[Part], memory: Tensor) -> Tensor:
    """Zero: the optimizer lets the parameter be."""
    return memory.zero_()


def difference(parts: Sequence[Part], memory: Tensor) -> Tensor:
    """The first part less the second."""
    first, second = parts
    return torch.sub(first, second, out=memory)


def joined(directions: Sequence[Direction], vectors: Sequence[Tensor]) -> Direction:
    """The direction of all ``vectors`` in a row, given that of each."""
    if len(directions) == 1:
        return directions[0]
    scale = _joined([direction.scale for direction in directions], vectors)
    if any(direction.way is not directions[0].way for direction in directions):
        each = [d.way(d.parts, torch.empty_like(v)) for d, v in zip(directions, vectors, strict=True)]
        return Direction(itself, (torch.cat(each),), scale)
    columns = zip(*(direction.parts for direction in directions), strict=True)
    return Direction(directions[0].way, tuple(_joined(parts, vectors) for parts in columns), scale)


def _joined(parts: Sequence[Part], vectors: Sequence[Tensor]) -> Part:
    first = parts[0]
    if not any(isinstance(part, Tensor) for part in parts) and all(part == first for part in parts):
        return first
    if all(isinstance(part, Tensor) and part.dim() and part.dtype in EXACT for part in parts):
        return torch.cat(parts)  # type: ignore[arg-type]
    wide = [torch.promote_types(vector.dtype, torch.float32) for vector in vectors]
    return torch.cat(
        [
            torch.as_tensor(part, dtype=dtype, device=vector.device).expand_as(vector)
            for part, dtype, vector in zip(parts, wide, vectors, strict=True)
        ]
    )


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


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A parameter after a step of the optimizer: its param group, its state, and the gradient that was consumed."""

    group: Mapping[str, Any]
    state: Mapping[str, Any]
    weight: Tensor
    gradient: Tensor


class KnownOptimizer(Protocol):
    """Optimizers that leave the direction of a step in their state and in the gradient."""

    @abstractmethod
    def knows(self, group: Mapping[str, Any]) -> bool:
        """Whether that is so with the settings of this param group. Asked before the first step: no state is there."""

    @abstractmethod
    def directions(self, held: Sequence[Held]) -> list[Direction]:
        """Of parameters that the step has just moved."""


_REGISTRY: dict[type[Optimizer], KnownOptimizer] = {}


def family(*kinds: type[Optimizer]) -> Callable[[type[KnownOptimizer]], type[KnownOptimizer]]:
    """Register the decorated family for optimizers of exactly these classes: a subclass may step in its own way."""

    def register(made: type[KnownOptimizer]) -> type[KnownOptimizer]:
        for kind in kinds:
            if kind in _REGISTRY:
                raise MethodError(f"The direction of {kind.__qualname__} is known already. Register another class.")
            _REGISTRY[kind] = made()
        return made

    return register


def families() -> dict[type[Optimizer], KnownOptimizer]:
    """All that are registered, by the class of the optimizer."""
    return dict(_REGISTRY)


def family_of(optimizer: Optimizer) -> KnownOptimizer | None:
    """What is known of ``optimizer``; None for classes that are not registered."""
    return _REGISTRY.get(type(optimizer))


_DECOUPLED = tuple(
    kind for kind in (getattr(torch.optim, name, None) for name in ("AdamW", "Muon", "Adafactor")) if kind is not None
)


def decay(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    """The rate of decoupled weight decay: what x shrinks by in a step, over the learning rate, beside the direction.

    >>> x = torch.nn.Parameter(torch.ones(2))
    >>> decay(torch.optim.AdamW([x], weight_decay=0.1), {"weight_decay": 0.1})
    0.1
    >>> decay(torch.optim.SGD([x], lr=0.1, weight_decay=0.1), {"weight_decay": 0.1})
    0.0
    """
    if isinstance(optimizer, _DECOUPLED) or group.get("decoupled_weight_decay", False):
        return float(group.get("weight_decay", 0.0))
    return 0.0


def rests(optimizer: Optimizer) -> bool:
    """Whether the optimizer's next step moves nothing, at learning rate 0: its direction is then the gradient's.

    A learning rate that is a tensor is not looked at, since that would wait for its device.
    """
    rates = [group.get("lr") for group in optimizer.param_groups]
    return all(isinstance(rate, float | int) and rate == 0 for rate in rates)
