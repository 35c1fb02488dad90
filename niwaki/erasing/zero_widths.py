"""Zeros in code that lives on: are they as wide as what they meet there?

Mostly their width follows that of the rest of the network. Where nothing is left that tells it, they are as wide as
they were; where they were concatenated, they have no width at all. Code must not join either with what may have another
width after a cut.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from enum import Enum, auto
from typing import final

from niwaki.erasing.emptied import keeps_positions
from niwaki.erasing.flow import CONCATENATIONS
from niwaki.erasing.living import RunLeft, around
from niwaki.erasing.returned import Missing
from niwaki.trace.graph import Graph, Node

Place = tuple[int, int]  # a value, and one of its dimensions


class Width(Enum):
    """What a dimension has that could have got narrower."""

    OLD = auto()  # all that it had
    NONE = auto()  # nothing
    MIXED = auto()  # anything else


@final
class ZeroWidths:
    """Follows zeros through the code of some runs.

    Args:
        graph: the record.
        missing: what is not there, and how wide the zeros in its place are.
        empty: values that have no positions along a dimension.
        stays: whether a dimension of a value can never get narrower.
    """

    def __init__(
        self, graph: Graph, missing: Missing, empty: Collection[Place], stays: Callable[[int, int], bool]
    ) -> None:
        self._values, self._missing, self._stays = graph.values, missing, stays
        self._known = {**dict.fromkeys(missing.fixed, Width.OLD), **dict.fromkeys(empty, Width.NONE)}

    def conflicts(self, runs: Sequence[RunLeft]) -> Iterator[tuple[str, str]]:
        """Where zeros meet something else that may have another width: the path of the module, and why that cannot
        be."""
        for left in runs if self._known else ():
            known = dict(self._known)
            ends = {left.flow.operands[end].join for end in left.ends}
            for place, node in enumerate(left.run.nodes):
                path = node.location.module
                if place in left.living and place not in ends:
                    continue
                if self._missing.modules.isdisjoint(around(path)) and self._conflict(node, known):
                    yield path, f"{node.operator} at {node.location.brief} joins it with what may get narrower"

    def _conflict(self, node: Node, known: dict[Place, Width]) -> bool:
        """Whether an operator joins what may have different widths. What it makes is noted."""
        outputs = [number for number in node.outputs if number is not None]
        if not keeps_positions(node):
            return self._reordered(node, outputs, known)
        found = [self._joined(node, number, dim, known) for number in outputs for dim in range(self._rank(number))]
        return any(found)

    def _joined(self, node: Node, number: int, dim: int, known: dict[Place, Width]) -> bool:
        """One dimension of what an operator makes that leaves positions where they are."""
        places = [(one, dim) for one in node.inputs() if self._is_as_long(one, number, dim, node)]
        widths = [self._width(place, known) for place in places]
        if not any(widths):
            return False
        same = self._same(places, widths)
        known[number, dim] = Width.MIXED if same is None else same
        return same is None and len(places) > 1 and node.operator not in CONCATENATIONS

    def _reordered(self, node: Node, outputs: Sequence[int], known: dict[Place, Width]) -> bool:
        """All dimensions of what any other operator makes."""
        inputs = dict.fromkeys(node.inputs())
        places = [(one, dim) for one in inputs for dim in range(self._rank(one)) if not self._stays(one, dim)]
        widths = [self._width(place, known) for place in places]
        if not any(widths):
            return False
        same = self._same(places, widths)
        made = [(one, dim) for one in outputs for dim in range(self._rank(one)) if not self._stays(one, dim)]
        known.update(dict.fromkeys(made, Width.MIXED if same is None else same))
        return same is None and len(inputs) > 1

    def _same(self, places: Sequence[Place], widths: Sequence[Width | None]) -> Width | None:
        """The width of all ``places``, if they have one."""
        if all(width is Width.NONE for width in widths):
            return Width.NONE
        old = all(width is Width.OLD or self._stays(*place) for place, width in zip(places, widths, strict=True))
        return Width.OLD if old else None

    def _width(self, place: Place, known: Mapping[Place, Width]) -> Width | None:
        follows, bypassed = self._missing.follows, self._missing.bypassed
        seen = set[Place]()
        while place not in known and place not in seen:
            seen.add(place)
            number, dim = place
            place = follows.get(place) or (bypassed.get(number, number), dim)
        return known.get(place)

    def _rank(self, number: int) -> int:
        return len(self._values[number].shape)

    def _is_as_long(self, one: int, number: int, dim: int, node: Node) -> bool:
        """Whether an input has a dimension that becomes this one of the result."""
        shape, made = self._values[one].shape, self._values[number].shape
        return len(shape) == len(made) and (shape[dim] == made[dim] or node.operator in CONCATENATIONS)
