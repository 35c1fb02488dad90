"""Parameters that multiply a term in the code that adds it, such as the scale of a layer: ``x + self.scale * f(x)``.

The term is zero where what makes ``f(x)`` is, whatever the scale; and code that reads it would fail without it. So it
stays where that code does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import final

import torch

from niwaki.trace.graph import Node, Value


@final
class Factors:
    """The parameters of one run between which and the join nothing but entries and shapes are looked at."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes
        self._readers: dict[int, list[int]] = {}
        for place, node in enumerate(nodes):
            for number in node.inputs():
                self._readers.setdefault(number, []).append(place)

    def among(
        self, values: Iterable[Value], joins: Collection[int], code: Collection[str] | None = None
    ) -> frozenset[int]:
        """Those of ``values``, in the modules ``code`` if given, from which every way leads to ``joins``."""
        own = (value.number for value in values if code is None or value.name.rpartition(".")[0] in code)
        return frozenset(number for number in own if self._multiplies(number, joins))

    def _multiplies(self, number: int, joins: Collection[int]) -> bool:
        seen, waiting = set[int](), [number]
        while waiting:
            for place in self._readers.get(waiting.pop(), ()):
                if place in seen or place in joins:
                    continue
                seen.add(place)
                if not _goes_by_entries(self._nodes[place]):
                    return False
                waiting += [output for output in self._nodes[place].outputs if output is not None]
        return True


def _goes_by_entries(node: Node) -> bool:
    """Whether an operator works entry by entry, or makes something else of one tensor, such as another view."""
    return torch.Tag.pointwise in node.operator.tags or len(set(node.inputs())) == 1
