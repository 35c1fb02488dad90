"""The sums over units that criteria are made of, all computed in one pass over the parameters.

Notation (per unit g): x its weights, the producing slices of all tensors together; h the gradient of the loss by them;
d the direction in which the optimizer moves, so that x goes to x - lr * d.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from niwaki.per_unit.index import as_real

GRADIENT_SUMS = frozenset({"product", "product_square", "product_absolute", "gradient_absolute"})
DIRECTION_SUMS = frozenset({"aligned", "direction_square"})
ACTIVATION_SUMS = frozenset({"active", "energy", "share"})
CURVATURE_SUMS = frozenset({"curved", "relative_trace"})
PEER_SUMS = frozenset({"distance", "exemplar"})
ABSENCE = frozenset({"changed", "worse", "routed"})  # of whole structures

_NONE = torch.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class UnitSums:
    """Sums over units, each [units]; a criterion sees only those it declares to read.

    ``entries``: the number of weights |x|. ``number``: the units' numbers among the ``num_units`` of the space.
    """

    num_units: int
    number: Tensor
    entries: Tensor
    seed: int = 0
    square: Tensor = _NONE  # sum of x^2
    absolute: Tensor = _NONE  # sum of |x|
    product: Tensor = _NONE  # sum of x h
    product_square: Tensor = _NONE  # sum of (x h)^2
    product_absolute: Tensor = _NONE  # sum of |x h|
    gradient_absolute: Tensor = _NONE  # sum of |h|
    aligned: Tensor = _NONE  # sum of x d
    direction_square: Tensor = _NONE  # sum of d^2
    group: Tensor = _NONE  # the number of its group
    distance: Tensor = _NONE  # sum of ||x - x_h|| over the units h of its group
    exemplar: Tensor = _NONE  # for how many preferences it stands for others of its group, see `exemplars`
    scale: Tensor = _NONE  # mean of |s| over the BatchNorm scales s among x
    active: Tensor = _NONE  # mean of |a| over the values a that are read of the unit
    energy: Tensor = _NONE  # nuclear norm of these values as a matrix [samples, positions]
    share: Tensor = _NONE  # of what readers add up, the share that is the unit's: its mean plus its deviation
    curved: Tensor = _NONE  # x' H x, H the Hessian of the loss by x
    relative_trace: Tensor = _NONE  # sum over its weights s of trace(H_ss) / (2 |s|) ||x_s||^2
    changed: Tensor = _NONE  # 1 - CKA of the last features with and without it; of structures
    worse: Tensor = _NONE  # the growth of the loss with its weights drawn anew; of structures
    routed: Tensor = _NONE  # mean over the tokens it is given of the size of what it adds to them; of experts


def row_sums(
    x: Tensor,
    gradient: Tensor | None,
    direction: Tensor | None,
    dims: Sequence[int],
    reads: Collection[str],
    scratch: Tensor | None = None,
) -> dict[str, list[Tensor]]:
    """The sums named in ``reads`` over all entries behind each position of each of ``dims``.

    ``scratch``: memory of the shape of ``x`` that may be overwritten, which ``direction`` may lie in. No other
    temporary is then needed.
    """
    x, scratch = as_real(x), None if scratch is None else as_real(scratch)
    gradient = None if gradient is None else as_real(gradient)
    direction = None if direction is None else as_real(direction)
    rows: dict[str, list[Tensor]] = {}
    if "square" in reads:
        rows["square"] = squares(x, dims)
    if "absolute" in reads:
        rows["absolute"] = sizes(x, dims)
    if direction is not None and not DIRECTION_SUMS.isdisjoint(reads):
        if "direction_square" in reads:
            rows["direction_square"] = squares(direction, dims)
        if "aligned" in reads:
            rows["aligned"] = totals(torch.mul(x, direction, out=scratch), dims)
    if gradient is not None and "gradient_absolute" in reads:
        rows["gradient_absolute"] = sizes(gradient, dims)
    if gradient is not None and not _PRODUCT_SUMS.isdisjoint(reads):
        product = torch.mul(x, gradient, out=scratch)
        if "product" in reads:
            rows["product"] = totals(product, dims)
        if "product_square" in reads:
            rows["product_square"] = squares(product, dims)
        if "product_absolute" in reads:
            rows["product_absolute"] = sizes(product, dims)
    for name in reads:
        if name not in rows and name in ROW_SUMS:  # no gradient reached this tensor: it contributes nothing
            rows[name] = [x.new_zeros(x.shape[dim], dtype=_wide(x)) for dim in dims]
    return rows


ROW_SUMS = frozenset({"square", "absolute"}) | GRADIENT_SUMS | DIRECTION_SUMS
_PRODUCT_SUMS = GRADIENT_SUMS - {"gradient_absolute"}

_AS_THEY_ARE = frozenset({torch.float32, torch.float64})  # asking torch for their promotion costs more than a small sum

_DEGREE = {
    "square": 2,
    "absolute": 1,
    "product": 1,
    "product_square": 2,
    "product_absolute": 1,
    "gradient_absolute": 0,
    "aligned": 1,
    "direction_square": 0,
}


def enlarged(sums: Mapping[str, Tensor], size: Tensor) -> dict[str, Tensor]:
    """Those of `ROW_SUMS` in ``sums`` if the weights x of each unit were ``size`` times as large, all [units]."""
    return {name: value * size.to(value) ** _DEGREE[name] for name, value in sums.items()}


def sizes(x: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """The sums of |x| over all entries behind each position, for each of ``dims``."""
    if x.dim() == 1:
        return [x.abs().to(_wide(x))]
    return [torch.linalg.vector_norm(x, 1, _others(x, dim), dtype=_wide(x)) for dim in dims]


def squares(x: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """The sums of x^2 over all entries behind each position, for each of ``dims``."""
    if x.dim() == 1:
        return [x.to(_wide(x)).square()]
    return [torch.linalg.vector_norm(x, dim=_others(x, dim), dtype=_wide(x)).square_() for dim in dims]


def _wide(x: Tensor) -> torch.dtype:
    return x.dtype if x.dtype in _AS_THEY_ARE else torch.promote_types(x.dtype, torch.float32)


def _others(x: Tensor, dim: int) -> list[int]:
    return [other for other in range(x.dim()) if other != dim]


def totals(x: Tensor, dims: Sequence[int]) -> list[Tensor]:
    """The sums of x over all entries behind each position, for each of ``dims``."""
    if x.dim() == 1:
        return [x.to(_wide(x), copy=True)]
    return [x.sum(dim=_others(x, dim), dtype=_wide(x)) for dim in dims]
