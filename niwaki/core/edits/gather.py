"""Layers that read some channels of a stream only: the others are left out before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, final

from torch import nn

from niwaki.core.edits.base import register_edit
from niwaki.core.edits.placed import PlacedEdit
from niwaki.core.gathered import Gathered


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Gather(PlacedEdit):
    """A layer is given some channels of a stream that has more, see `Gathered`. ``dim``: of what it is given.

    In the masked network the weights that read the others are zero: `Keep` says which.
    """

    kind: ClassVar[str] = "gather"
    does: ClassVar[str] = "gathers inputs"
    weight_dim: ClassVar[int] = 1

    def replacement(self, old: nn.Module) -> nn.Module:
        return Gathered(old, self.runs, self.gaps, self.dim)

    def __str__(self) -> str:
        read, others = sum(self.runs), sum(self.gaps)
        return f"{self.module} reads {read} of {read + others} channels"
