"""The saliency of structures: that of their mean weight, as often as they have weights.

A structure can have a thousand times the weights of another, so its saliency has to grow with them: two copies of it
are worth twice as much. Sums of weights do (Taylor terms, the norm of order 1). Norms, angles and means do not, but
every criterion is asked here what it thinks of one weight that is the mean of them all. Over the cost that goes with a
structure this compares large and small ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from niwaki.per_unit.protocol import Measure
from niwaki.per_unit.sums import ABSENCE, CURVATURE_SUMS, ROW_SUMS, UnitSums


def weights_of(entries: Tensor, whole: Tensor | None) -> Tensor:
    """How many weights the saliency of each unit is a sum of, [num_units]: all of a structure, and 1 for other units,
    which are scored as they are. ``whole`` [num_units]: which units are structures, None for none."""
    return torch.ones_like(entries) if whole is None else torch.where(whole, entries, 1).clamp(min=1)


def saliencies(measures: Sequence[Measure], sums: UnitSums, whole: Tensor | None) -> Tensor:
    """What ``measures`` make of ``sums``, [measures, num_units]; those of structures grow with their size."""
    if whole is None:
        return torch.stack([measure.saliency(sums) for measure in measures])
    number = weights_of(sums.entries, whole)
    names = [name for name in ("entries", *ROW_SUMS, *CURVATURE_SUMS) if len(getattr(sums, name))]
    mean = replace(sums, **{name: getattr(sums, name) / number for name in names})
    return torch.stack(
        [m.saliency(mean) * (1 if ABSENCE.intersection(m.reads) else number) for m in measures]  # those look at it all
    )
