"""What a tensor sums to before and after the scales of a learnt mask are in it, as part of the plan: no change, but a
record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

from niwaki.core.edits.base import Edit, Place, edited_by_hand, register_edit

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


@final
@register_edit
@dataclass(frozen=True, slots=True)
class ScaledBefore(Edit):
    """The plan is for weights that are multiplied by scales before they are cut. The absolute values of ``tensor`` sum
    to ``unscaled`` without them and to ``scaled`` with them; `niwaki.cut` warns where they sum to the first."""

    kind: ClassVar[str] = "scaled before"

    tensor: str
    unscaled: float
    scaled: float

    @property
    def place(self) -> Place:
        return "scaled before", self.tensor

    def check(self, plan: Plan) -> None:
        if self.tensor not in plan.dense:
            raise edited_by_hand(f"scales a tensor {self.tensor!r}, which the network it is for does not have")

    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        """None: the first plan was carried out, and the later one speaks of the sums in the smaller network."""
        return None

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        """``whole``, unless the tensor has been cut, and has other sums."""
        return None if whole is None or whole.tensor in done.changes else whole

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        tensor = name(self.tensor)
        return None if tensor is None else replace(self, tensor=tensor)

    def to_data(self) -> dict[str, Any]:
        return {"tensor": self.tensor, "unscaled": self.unscaled, "scaled": self.scaled}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["tensor"]), float(data["unscaled"]), float(data["scaled"]))

    def __str__(self) -> str:
        return f"{self.tensor} sums to {self.scaled:.6g} with its scales, and to {self.unscaled:.6g} without"
