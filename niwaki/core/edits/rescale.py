"""Weights that take up a factor, where an average goes over fewer entries than before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from torch import Tensor

from niwaki.core.edits.base import Place, Shape, TensorEdit, edited_by_hand, register_edit

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Rescale(TensorEdit):
    """``tensor`` becomes factor * (tensor + shift) - shift. The zeroed network keeps it as it is."""

    kind: ClassVar[str] = "rescale"

    tensor: str
    factor: float
    shift: float

    @property
    def place(self) -> Place:
        return "rescale", self.tensor, self.shift

    @property
    def dims(self) -> tuple[int, ...]:
        return ()

    def check(self, plan: Plan) -> None:
        if self.tensor not in plan.dense:
            raise edited_by_hand(f"rescales a tensor {self.tensor!r}, which the network it is for does not have")

    def shape_of(self, shape: Shape) -> Shape:
        return shape

    def of(self, tensor: Tensor) -> Tensor:
        precise = tensor.to(torch.promote_types(tensor.dtype, torch.float64))
        return ((precise + self.shift) * self.factor - self.shift).to(tensor.dtype)

    def of_gradient(self, gradient: Tensor) -> Tensor:
        return gradient / self.factor

    def of_state(self, state: Tensor, dims: Mapping[int, int], power: Callable[[], int]) -> Tensor:
        exponent = power()
        return state * self.factor**exponent if exponent else state  # a whole number of steps stays whole

    def zero_(self, tensor: Tensor) -> None:
        pass

    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        if first is None or later is None:
            return first or later
        return replace(later, factor=first.factor * later.factor)

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is None:
            return whole
        # Back to what it was, where nothing is left to repair.
        factor = (1.0 if whole is None else whole.factor) / first.factor
        return None if factor == 1 else replace(first, factor=factor)

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        tensor = name(self.tensor)
        return None if tensor is None else replace(self, tensor=tensor)

    def to_data(self) -> dict[str, Any]:
        return {"tensor": self.tensor, "factor": self.factor, "shift": self.shift}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["tensor"]), float(data["factor"]), float(data["shift"]))

    def __str__(self) -> str:
        return f"{self.tensor} times {self.factor:.6g}" + (f", shifted by {self.shift:g}" if self.shift else "")
