"""The positions of one dimension of one tensor that stay."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor

from niwaki.core.edits.base import Edit, Place, Shape, TensorEdit, edited_by_hand, register_edit
from niwaki.core.positions import Positions, whole_number
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


@dataclass(frozen=True, slots=True)
class _Kept(TensorEdit):
    """A cut of dimension ``dim``, of which the positions ``kept`` stay, in ascending order."""

    tensor: str
    dim: int
    kept: Sequence[int]

    def __post_init__(self) -> None:
        if not isinstance(self.kept, Positions):
            object.__setattr__(self, "kept", Positions(self.kept))

    @final
    @property
    def place(self) -> Place:
        return "keep", self.tensor, self.dim

    @final
    @property
    def dims(self) -> tuple[int, ...]:
        return (self.dim,)

    @final
    def check(self, plan: Plan) -> None:
        shape = plan.dense.get(self.tensor)
        if shape is None:
            raise edited_by_hand(f"cuts a tensor {self.tensor!r}, which the network it is for does not have")
        if not 0 <= self.dim < len(shape):
            raise edited_by_hand(f"cuts dimension {self.dim} of {self.tensor!r}, whose shape is {list(shape)}")
        kept = Positions.of(self.kept)
        if not kept.ascending or (len(kept) and kept[-1] >= shape[self.dim]):
            raise edited_by_hand(
                f"keeps positions in dimension {self.dim} of {self.tensor!r} that are not an ascending choice of its "
                f"{shape[self.dim]}"
            )

    @final
    def shape_of(self, shape: Shape) -> Shape:
        return (*shape[: self.dim], len(self.kept), *shape[self.dim + 1 :])

    @final
    def of(self, tensor: Tensor) -> Tensor:
        return _chosen(tensor, self.dim, self.kept)

    @final
    def of_gradient(self, gradient: Tensor) -> Tensor:
        return _chosen(gradient, self.dim, self.kept)

    @final
    def of_state(self, state: Tensor, dims: Mapping[int, int], power: Callable[[], int]) -> Tensor:
        dim = dims.get(self.dim)
        return state if dim is None or state.shape[dim] == 1 else _chosen(state, dim, self.kept)

    @abstractmethod
    def zero_(self, tensor: Tensor) -> None:
        """Whether what leaves is zero in the zeroed network is what the two kinds differ in."""

    @final
    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        if first is None or later is None:
            return first or later
        return replace(later, kept=Positions(np.asarray(first.kept)[np.asarray(later.kept)]))

    @final
    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is None:
            return whole
        here = np.asarray(first.kept)
        stays = np.arange(done.dense[first.tensor][first.dim]) if whole is None else np.asarray(whole.kept)
        found = np.searchsorted(here, stays).clip(max=len(here) - 1)
        lost = stays[here[found] != stays] if len(here) else stays
        if len(lost):
            raise PlanError(
                f"The plan keeps {len(lost)} positions of {first.tensor!r} (dimension {first.dim}) that have left this "
                f"model already, the first of them number {int(lost[0])}. What has left cannot come back: use a plan "
                "that removes at least what the model was shrunk by."
            )
        return None if whole is None or len(stays) == len(here) else replace(whole, kept=Positions(found))

    @final
    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        tensor = name(self.tensor)
        return None if tensor is None else replace(self, tensor=tensor)

    @final
    def to_data(self) -> dict[str, Any]:
        return {"tensor": self.tensor, "dim": self.dim, "kept": list(self.kept)}

    @final
    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["tensor"]), whole_number(data["dim"]), Positions.from_json(data["kept"]))

    def __str__(self) -> str:
        return f"{self.tensor} dim {self.dim} keeps {len(self.kept)}"


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Keep(_Kept):
    """Of dimension ``dim`` of ``tensor`` the positions ``kept`` stay; the others are zero in the zeroed network."""

    kind: ClassVar[str] = "keep"

    def zero_(self, tensor: Tensor) -> None:
        removed = torch.ones(tensor.shape[self.dim], dtype=torch.bool, device=tensor.device)
        removed[_index(self.kept, tensor.device)] = False
        tensor.index_fill_(self.dim, removed.nonzero().flatten(), 0)


@final
@register_edit
@dataclass(frozen=True, slots=True)
class KeepDirection(_Kept):
    """As `Keep`, of the directions of a weight norm: what leaves is not zero in the zeroed network. Directions have a
    length beside them that is, and without any entry they would have no direction."""

    kind: ClassVar[str] = "keep direction"

    def zero_(self, tensor: Tensor) -> None:
        pass


def kept_by_tensor(edits: Iterable[Edit]) -> dict[str, dict[int, Sequence[int]]]:
    """The kept indices of every tensor that some edits cut, by dimension."""
    found: dict[str, dict[int, Sequence[int]]] = {}
    for edit in edits:
        if isinstance(edit, _Kept):
            found.setdefault(edit.tensor, {})[edit.dim] = edit.kept
    return found


def _chosen(tensor: Tensor, dim: int, kept: Sequence[int]) -> Tensor:
    return tensor.index_select(dim, _index(kept, tensor.device))


def _index(kept: Sequence[int], device: torch.device) -> Tensor:
    return torch.tensor(Positions.of(kept).array, device=device)
