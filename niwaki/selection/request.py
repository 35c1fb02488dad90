"""What a selection is asked for, as one value: limits, what is gone already, and what must stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.selection.steps import Widths


@dataclass(frozen=True, slots=True, eq=False)
class SelectionRequest:
    """A choice that meets every one of ``limits``, by measure.

    ``removed`` [num_units]: gone already, and never taken back; ``staying`` [num_units]: never removed. ``steps``: the
    widths that groups may keep; ``compare``: with which others each unit is compared; ``weight`` [groups]: how much
    more some groups matter than others, see `niwaki.selection.select`. ``untrained``: structures may be such as no
    method can drive to zero, see `niwaki.selection.structures.erasable`. ``in_order``: structures go one after the
    other, by saliency over cost, for saliencies that are ranks rather than losses: sums of them mean nothing.
    """

    limits: Mapping[str, float]
    removed: BoolArray | None = None
    steps: Widths = Widths()
    compare: Compare = "group"
    weight: FloatArray | None = None
    staying: BoolArray | None = None
    untrained: bool = False
    in_order: bool = False

    def present(self, space: SearchSpace) -> BoolArray:
        """What is there before, [num_units]."""
        return np.ones(space.num_units, dtype=bool) if self.removed is None else ~self.removed

    def held(self, space: SearchSpace) -> BoolArray:
        """What never leaves, [num_units]."""
        return np.zeros(space.num_units, dtype=bool) if self.staying is None else self.staying

    def holding(self, staying: BoolArray) -> SelectionRequest:
        """The same where ``staying`` [num_units] never leaves."""
        return replace(self, staying=staying)
