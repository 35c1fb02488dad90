"""A search space as text that fits a screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from niwaki.core.space import Pin, SearchSpace

_SHOWN = 12


def describe_space(space: SearchSpace) -> str:
    """Groups, coverage, costs and the most frequent reasons for pins, in at most some forty lines."""
    dense, least = space.cost(), space.least_cost()
    lines = [
        f"Search space: {space.num_units} units in {len(space.groups)} groups; "
        f"{space.coverage:.1%} of the parameters lie in at least one unit",
        f"  dense: {dense}",
        f"  least: {least} (the fewest units left in every group)",
    ]
    by_size = sorted(space.groups, key=lambda group: -group.units)
    for group in by_size[:_SHOWN]:
        tensors = sorted({piece.tensor for piece in group.slices})
        inexact = "" if group.inexact is None else f", inexact: {group.inexact}"
        lines.append(f"  {group.name}: {group.units} units in {len(tensors)} tensors{inexact}")
    if len(by_size) > _SHOWN:
        lines.append(f"  ... and {len(by_size) - _SHOWN} smaller groups (space.groups)")
    for tie in space.ties[:_SHOWN]:
        parts = [f"{step} of {space.groups[group].name}" for group, step in zip(tie.groups, tie.steps, strict=True)]
        if len(parts) > 1:
            lines.append(f"  tied, leaving together: {', '.join(parts)}")
        else:
            lines.append(f"  leaving in steps: {parts[0]}, {tie.most} times at most")
    by_reason: dict[str, list[Pin]] = {}
    for pin in space.pins:
        by_reason.setdefault(pin.reason, []).append(pin)
    if by_reason:
        lines.append(f"Pinned: {len(space.pins)} dimensions, for {len(by_reason)} reasons (space.pins has them all)")
    for reason, pins in sorted(by_reason.items(), key=lambda item: -len(item[1]))[:_SHOWN]:
        where = f" at {pins[0].location}" if pins[0].location else ""
        lines.append(f"  {len(pins)} x {reason}: {pins[0].parameter} dim {pins[0].dim}{where}")
    if len(by_reason) > _SHOWN:
        lines.append(f"  ... and {len(by_reason) - _SHOWN} more reasons")
    lines += [f"Note: {note}" for note in space.notes]
    return "\n".join(lines)
