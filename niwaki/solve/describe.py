"""What the rules said, and the steps of its solution, as text that fits a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.describe import counted, first_of, spans

if TYPE_CHECKING:
    from niwaki.solve.groups import SolvedGroups

_SHOWN = 12  # components
_PLACES = 4  # dimensions of a group


def describe_components(rows: IntArray) -> str:
    """The ids that stand for each component or product of components, given those of every id: rows [ids, K]."""
    distinct, which = np.unique(rows, axis=0, return_inverse=True)
    lines = []
    for number in np.argsort((distinct != 0).sum(axis=1), kind="stable")[: _SHOWN + 1].tolist():
        name = " * ".join(map(str, distinct[number][distinct[number] != 0].tolist())) or "pinned"
        ids = np.flatnonzero(which.reshape(-1) == number)
        lines.append(f"  {name}: {spans(ids[ids != 0])}")
    components = np.unique(rows[rows != 0])
    more = [f"  … {len(distinct) - _SHOWN:,} more"] if len(distinct) > _SHOWN else []
    return "\n".join([counted(len(components), "component"), *lines[:_SHOWN], *more])


def describe_units(units: SolvedGroups) -> str:
    """The groups, and on which dimensions of which tensors their units are."""
    sizes = np.diff(units.starts)
    where: list[list[str]] = [[] for _ in sizes]
    for dim in units.dims:
        owners = units.owners(dim)
        found = np.searchsorted(units.starts, np.unique(owners[owners < len(units)]), side="right") - 1
        for group in np.unique(found).tolist():
            where[group].append(f"{dim.value.name} dim {dim.dim}")
    groups = [
        f"  {number}: {counted(size, 'unit')} on {', '.join(first_of(where[number], _PLACES))}"
        for number, size in enumerate(sizes.tolist())
    ]
    return "\n".join([f"{counted(len(units), 'unit')} in {counted(len(sizes), 'group')}", *first_of(groups)])
