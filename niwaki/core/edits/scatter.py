"""Branches that write some channels of a stream only: the last layer of each puts its outputs into their places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from niwaki.core.edits.base import register_edit
from niwaki.core.edits.placed import PlacedEdit
from niwaki.core.scattered import Scattered


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Scatter(PlacedEdit):
    """The outputs of a layer, of which only some stay, become channels of a stream that has more; zeros take the places
    of the others, see `Scattered`. ``dim``: of its result.

    In the masked network these channels are zero: `Keep` says which.
    """

    kind: ClassVar[str] = "scatter"
    does: ClassVar[str] = "scatters outputs"
    weight_dim: ClassVar[int] = 0

    def replacement(self, old: nn.Module) -> nn.Module:
        return Scattered(old, self.runs, self.gaps, self.dim)

    def __str__(self) -> str:
        outputs, zeros = sum(self.runs), sum(self.gaps)
        return f"{self.module} writes {outputs} of {outputs + zeros} channels"
