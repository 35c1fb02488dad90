"""Follow whole numbers that are positions along an axis, such as the experts that a router has chosen.

When positions leave, the others are numbered anew. What arranges such numbers without changing them gives such numbers
again; a rule that looks something up by them, or counts them, says so (`Call.places`). Whatever else computes with them
would go on from other numbers, so their axis has to stay whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch

from niwaki.rules.registry import HOMOGENEOUS, Call, Label, Rule

_WHY = "computes with positions along it, which are numbered anew when some of them leave"


def follow(call: Call, rule: Rule | None, made: Sequence[Label], understood: Sequence[Label]) -> list[Label]:
    """The labels ``made`` by a rule (None: it refused), with the places that their entries are; pins what nobody
    understands."""
    labels = list(made)
    how = HOMOGENEOUS.get(rule) if rule is not None else None
    for name, given in _given(call):
        assert given.places is not None
        if call.operator is torch.ops.aten._to_copy.default or (how is not None and how.whole and name in how.factors):
            labels = [replace(label, places=given.places) for label in labels]
        elif all(given is not known for known in understood):
            call.pin(given.places, f"{call.operator} {_WHY}")
    return labels


def _given(call: Call) -> Iterator[tuple[str, Label]]:
    """The arguments whose entries are places on an axis that is still free."""
    for name, argument in call.arguments.items():
        for item in argument if isinstance(argument, tuple) else (argument,):
            if isinstance(item, Label) and item.places is not None and item.places.free:
                yield name, item
