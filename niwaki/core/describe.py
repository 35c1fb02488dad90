"""A search space as text that fits a screen."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niwaki.core.space import SearchSpace

_SHOWN = 12


def describe_space(space: SearchSpace) -> str:
    """Groups, coverage, costs and the most frequent reasons for pins, in at most some forty lines."""
    dense, least = space.cost(), space.least_cost()
    lines = [
        f"Search space: {space.num_units} units in {len(space.groups)} groups; "
        f"{space.coverage:.1%} of the parameters lie in at least one unit",
        f"  dense: {dense}",
        f"  least: {least} (one unit kept in every group)",
    ]
    by_size = sorted(space.groups, key=lambda group: -group.units)
    for group in by_size[:_SHOWN]:
        tensors = sorted({piece.tensor for piece in group.slices})
        lines.append(f"  {group.name}: {group.units} units in {len(tensors)} tensors")
    if len(by_size) > _SHOWN:
        lines.append(f"  ... and {len(by_size) - _SHOWN} smaller groups (space.groups)")
    for tie in space.ties[:_SHOWN]:
        parts = ", ".join(
            f"{step} of {space.groups[group].name}" for group, step in zip(tie.groups, tie.steps, strict=True)
        )
        lines.append(f"  tied, leaving together: {parts}")
    reasons: Counter[str] = Counter()
    for pin in space.pins:
        reasons[f"{pin.reason} at {pin.location}" if pin.location else pin.reason] += 1
    if reasons:
        lines.append(f"Pinned: {len(space.pins)} dimensions, for {len(reasons)} reasons (space.pins has them all)")
        for reason, count in reasons.most_common(_SHOWN):
            lines.append(f"  {count} x {reason}")
    lines += [f"Note: {note}" for note in space.notes]
    return "\n".join(lines)
