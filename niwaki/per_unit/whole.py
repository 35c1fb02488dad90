"""The saliency of structures, which is comparable between structures of any size.

Criteria of the loss (its gradient, its curvature) are sums over all weights of a structure, and tell its effect. Norms,
angles and means do not: those are asked what they think of one weight that is the mean of them all, and that counts as
often as the weights are used. (Where weights are not shared, that is in proportion to their number. A kernel is used at
every position of a picture: by the number of weights late layers would be worth most, since they have most.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from niwaki.core.dying import dying_parameters, uses_of_weights
from niwaki.core.space import SearchSpace
from niwaki.per_unit.protocol import Measure
from niwaki.per_unit.sums import ABSENCE, CURVATURE_SUMS, GRADIENT_SUMS, ROW_SUMS, UnitSums

_OF_THE_LOSS = GRADIENT_SUMS | CURVATURE_SUMS


@dataclass(frozen=True, slots=True, eq=False)
class WholeUnits:
    """The units that are structures: ``which`` [num_units]; and how often the weights of each are used, in numbers of
    weights that are used as often as those of all structures are on average: ``uses`` [num_units], 1 of other units."""

    which: Tensor
    uses: Tensor

    @classmethod
    def of(
        cls, space: SearchSpace, parameters: Mapping[str, Tensor], like: Tensor, readers: bool = False
    ) -> WholeUnits | None:
        """Those of ``space``, of whose weights only ``parameters`` are scored, as tensors like ``like``; None if there
        are none. ``readers``: as for `UnitIndex.of`."""
        groups = [group for group in space.groups if group.structure is not None]
        if not groups:
            return None
        which, number = torch.zeros(space.num_units, dtype=torch.bool), torch.zeros(space.num_units)
        dying, often = dying_parameters(space), uses_of_weights(space)
        for name, units in dying.items():
            if name in parameters:
                number[units] += often[name] * parameters[name].numel()
        for group in groups:
            which[group.first] = True
            for piece in group.slices:
                own = group.first in dying.get(piece.tensor, ())
                scored = piece.role.produces or (readers and piece.role.consumes)
                if piece.parameter and scored and piece.tensor in parameters and not own:
                    weight = parameters[piece.tensor]
                    number[group.first] += piece.index.shape[1] * weight.numel() / weight.shape[piece.dim]
        uses = torch.where(which, number, 1.0)
        return cls(which.to(like.device), torch.where(uses > 0, uses, 1.0).to(like))


def saliencies(measures: Sequence[Measure], sums: UnitSums, whole: WholeUnits | None) -> Tensor:
    """What ``measures`` make of ``sums``, [measures, num_units]; those of structures grow with their size."""
    if whole is None:
        return torch.stack([measure.saliency(sums) for measure in measures])
    entries = torch.where(whole.which, sums.entries, 1).clamp(min=1)
    names = [name for name in ("entries", *ROW_SUMS, *CURVATURE_SUMS) if len(getattr(sums, name))]
    mean = replace(sums, **{name: getattr(sums, name) / entries for name in names})
    return torch.stack([one.saliency(sums) if _sees_all(one) else one.saliency(mean) * whole.uses for one in measures])


def _sees_all(measure: Measure) -> bool:
    """Whether it looks at the structure as a whole: at its effect on the loss, or at the network without it."""
    reads = {*measure.reads}
    return bool(reads & ABSENCE) or bool(reads) and reads <= _OF_THE_LOSS
