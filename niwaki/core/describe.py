"""Describe a search space, a plan, and long lists of numbers or lines as text that fits a screen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from niwaki.core.counts import IntArray

if TYPE_CHECKING:
    from niwaki.core.edits.base import Edit
    from niwaki.core.plan import Plan
    from niwaki.core.space import Group, Pin, SearchSpace
    from niwaki.core.structures import Structure

_SHOWN = 12
_SHOWN_OF_PLAN = 20
_SPANS = 6
_MEASURES = {"macs": "MACs", "params": "parameters", "memory": "bytes of weights", "activations": "activation bytes"}


def describe_plan(plan: Plan) -> str:
    """The cost of a plan beside the dense network and its budget, the units that it keeps of each group, and an edit of
    every kind that it has."""
    total = sum(plan.units.values())
    removed = total - sum(map(len, plan.kept.values()))
    lines = [f"Plan: {removed:,} of {total:,} units in {counted(len(plan.kept), 'group')} are removed"]
    about = plan.provenance
    dense, kept, budget, width = (_mapping(about.get(name)) for name in ("dense", "kept", "budget", "entries_per_unit"))
    for measure, noun in _MEASURES.items():
        if dense.get(measure) and measure in kept:
            share, asked = kept[measure] / dense[measure], _limit(budget.get(measure))
            lines.append(f"  {noun}: {dense[measure]:,} -> {kept[measure]:,} ({share:.1%}{asked})")
    lines += [f"  {about[told]}" for told in ("tight", "free") if about.get(told)]
    touched = [
        (name, len(kept), units)
        for name, kept in plan.kept.items()
        if len(kept) < (units := plan.units[name]) and (kept or units == 1)  # else it is inside of what is erased
    ]
    for name, stays, units in touched[:_SHOWN_OF_PLAN]:
        block = f" blocks of {width[name]} entries" if name in width else ""
        lines.append(f"  {name}: keeps {stays} of {units}{block}" if stays or units > 1 else f"  {name}: is erased")
    if len(touched) > _SHOWN_OF_PLAN:
        lines.append(f"  ... and {counted(len(touched) - _SHOWN_OF_PLAN, 'more group')}")
    for kind, edits in _by_kind(plan).items():
        more = f"; and {len(edits) - 1:,} more" if len(edits) > 1 else ""
        lines.append(f"  {kind}: {edits[0]}{more}")
    return "\n".join(lines)


def _by_kind(plan: Plan) -> dict[str, list[Edit]]:
    found: dict[str, list[Edit]] = {}
    for edit in plan.edits:
        found.setdefault(edit.kind, []).append(edit)
    return found


def counted(number: int, noun: str) -> str:
    """A number and its noun, ``1 group`` or ``2 groups``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def new_weights(layers: int) -> str:
    """How many layers a repair has changed.

    >>> new_weights(1)
    '1 layer has new weights.'
    """
    return f"{counted(layers, 'layer')} {'has' if layers == 1 else 'have'} new weights."


def _limit(limit: Any) -> str:
    """A limit as the user gave it: a fraction, or an amount."""
    if not isinstance(limit, (int, float)):
        return ""
    return f", budget {limit:.1%}" if isinstance(limit, float) else f", budget {limit:,}"


def _mapping(found: Any) -> Mapping[str, Any]:
    """A part of a provenance, which files may lack."""
    return found if isinstance(found, Mapping) else {}


def describe_space(space: SearchSpace) -> str:
    """Groups, coverage, costs and the most frequent reasons for pins, in at most some forty lines."""
    dense, least = space.cost(), space.least_cost()
    groups = space.width_groups
    lines = [
        f"Search space: {sum(group.units for group in groups):,} units in {counted(len(groups), 'group')}; "
        f"{percent(space.coverage)} of the parameters lie in at least one unit",
        f"  dense: {dense}",
        f"  least: {least} (the fewest units left in every group)",
    ]
    by_size = sorted(groups, key=lambda group: -group.units)
    for group in by_size[:_SHOWN]:
        tensors = sorted({piece.tensor for piece in group.slices})
        inexact = "" if group.inexact is None else f", inexact: {group.inexact}"
        lines.append(f"  {group.name}: {group.units} units in {counted(len(tensors), 'tensor')}{inexact}")
    if len(by_size) > _SHOWN:
        lines.append(f"  ... and {len(by_size) - _SHOWN} smaller groups (space.groups)")
    for tie in space.ties[:_SHOWN]:
        parts = [f"{step} of {space.groups[group].name}" for group, step in zip(tie.groups, tie.steps, strict=True)]
        if len(parts) > 1:
            lines.append(f"  tied, removed together: {', '.join(parts)}")
        else:
            lines.append(f"  removed in steps: {parts[0]}, {tie.most} times at most")
    by_reason: dict[str, list[Pin]] = {}
    for pin in space.pins:
        by_reason.setdefault(pin.reason, []).append(pin)
    if by_reason:
        lines.append(
            f"Pinned: {counted(len(space.pins), 'dimension')}, for {counted(len(by_reason), 'reason')} "
            "(space.pins has them all)"
        )
    for reason, pins in sorted(by_reason.items(), key=lambda item: -len(item[1]))[:_SHOWN]:
        # A file of an installed package is named from there.
        where = f" at {str(pins[0].location).rpartition('site-packages/')[2]}" if pins[0].location else ""
        lines.append(f"  {len(pins)} x {reason}: {pins[0].parameter} dim {pins[0].dim}{where}")
    if len(by_reason) > _SHOWN:
        lines.append(f"  ... and {len(by_reason) - _SHOWN} more reasons")
    lines += _of_structures(space.structures)
    lines += [f"Note: {note}" for note in space.notes]
    return "\n".join(lines)


def _of_structures(structures: Sequence[Structure]) -> list[str]:
    """Those that can be erased, and why the others cannot."""
    if not structures:
        return []
    erasable = [one for one in structures if one.erasable]
    names = {number: one.name for number, one in enumerate(structures)}
    lines = [
        f"Structures: {len(erasable)} of {len(structures)} can be erased, each by itself "
        "(space.structures has them all)"
    ]
    for one in erasable[:_SHOWN]:
        inside = f", inside of {names[one.inside]}" if one.inside is not None else ""
        lines.append(f"  {one}{inside}")
    if len(erasable) > _SHOWN:
        lines.append(f"  ... and {len(erasable) - _SHOWN} more")
    by_reason: dict[str, list[Structure]] = {}
    for one in structures:
        if one.refused is not None:
            by_reason.setdefault(one.refused, []).append(one)
    for reason, found in sorted(by_reason.items(), key=lambda item: -len(item[1]))[:_SHOWN]:
        lines.append(f"  {len(found)} x not erasable, {reason}: {found[0].name} at {found[0].location}")
    return lines


def describe_group(group: Group) -> str:
    """The name and the number of units of a group, and its positions in each tensor."""
    lines = [f"{group.name}: {counted(group.units, 'unit')}" + (f", inexact: {group.inexact}" if group.inexact else "")]
    return "\n".join([*lines, *first_of([f"  {piece}" for piece in group.slices])])


def first_of(lines: Sequence[str], most: int = _SHOWN) -> list[str]:
    """The first lines, and the number of further ones, indented like them.

    >>> first_of(["  a", "  b", "  c"], 1)
    ['  a', '  … 2 more']
    """
    if len(lines) <= most:
        return list(lines)
    indent = len(lines[0]) - len(lines[0].lstrip())
    return [*lines[:most], f"{' ' * indent}… {len(lines) - most:,} more"]


def spans(numbers: IntArray) -> str:
    """Whole numbers [n] in their order: ``1..4`` for those that follow one another, ``5x3`` for equal ones.

    >>> spans(np.array([1, 2, 3, 9, 5, 5, 5, 6]))
    '1..3 9 5x3 6'
    """
    steps = np.diff(numbers)
    found: list[str] = []
    start = 0
    while start < len(numbers) and len(found) < _SPANS:
        step = int(steps[start]) if start < len(steps) else None
        other = np.flatnonzero(steps[start:] != step) if step in (0, 1) else np.zeros(1)
        stop = start + (int(other[0]) if len(other) else len(steps) - start) + 1
        if step == 1 and stop < len(numbers) and steps[stop - 1] == 0:
            stop -= 1  # the last number begins a span of equal ones
        first, last = int(numbers[start]), int(numbers[stop - 1])
        if stop - start == 1:
            found.append(str(first))
        else:
            found.append(f"{first}x{stop - start}" if step == 0 else f"{first}..{last}")
        start = stop
    if start < len(numbers):
        found.append(f"… {len(numbers) - start:,} more")
    return " ".join(found)


def percent(share: float) -> str:
    """A fraction in per cent, rounded to 0 or 100 only if it is that.

    >>> percent(0.99994), percent(1.0), percent(0.4512)
    ('99.99 %', '100 %', '45.1 %')
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    for digits in (1, 2, 3):
        text = f"{100 * share:.{digits}f}"
        if float(text) not in (0, 100):
            return f"{text} %"
    return "under 0.001 %" if share < 0.5 else "over 99.999 %"
