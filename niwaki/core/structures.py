"""Structures: connected sets of operators that can vanish from a network as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.core.location import Location


@dataclass(frozen=True, slots=True)
class Structure:
    """Operators whose results reach the rest of the network through one operand of an addition, and nowhere else.

    ``name``: the module that has all of them that are given parameters, and a number where it has several structures.
    ``location``: where the addition is; ``join``: its number among the operators of the first run, ``operand``: which
    of the two that it is given. ``operators``: how many vanish. ``macs`` [multiply-accumulates] and ``params``
    [entries]: what vanishes with them, of the first example call; ``parameters``: those parameters, by name.
    ``producers``: those of them that make the term: at zero, the term is zero. ``inside``: the number of the smallest
    structure around it, if any. ``refused``: why it cannot be erased; None if it can.
    """

    name: str
    location: Location
    join: int
    operand: int
    operators: int
    macs: int
    params: int
    parameters: tuple[str, ...]
    producers: tuple[str, ...]
    inside: int | None
    refused: str | None

    @property
    def erasable(self) -> bool:
        """Whether it can vanish, by itself."""
        return self.refused is None

    def __str__(self) -> str:
        why = "" if self.refused is None else f"; not erasable: {self.refused}"
        return f"{self.name}: {self.macs:,} MACs, {self.params:,} parameters, added at {self.location.brief}{why}"
