"""Parameters that multiply a term in the code that adds it, such as the scale of a layer: ``x + self.scale * f(x)``.

The term is zero where what makes ``f(x)`` is, whatever the scale; and code that reads it would fail without it. So it
stays where that code does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import final

import torch

from niwaki.trace.graph import Node, Value


@final
class Factors:
    """The parameters of one run that are multiplied, entry by entry, and nothing else. ``readers``: the operators that
    are given each parameter."""

    def __init__(self, nodes: Sequence[Node], readers: Mapping[int, Sequence[int]]) -> None:
        read: dict[int, list[Node]] = {}
        for node in nodes:
            for number in node.inputs():
                read.setdefault(number, []).append(node)
        self._numbers = {number for number in readers if all(_multiplies(node, read) for node in read[number])}

    def among(self, values: Iterable[Value], code: Collection[str]) -> frozenset[int]:
        """Those of ``values`` that belong to the modules ``code``."""
        return frozenset(
            value.number for value in values if value.number in self._numbers and value.name.rpartition(".")[0] in code
        )


def _multiplies(node: Node, readers: Mapping[int, Sequence[Node]]) -> bool:
    """Whether an operator works entry by entry, or makes another view of one tensor, of which that is true."""
    if torch.Tag.pointwise in node.operator.tags:
        return True
    made = [number for number in node.outputs if number is not None]
    behind = [reader for number in made for reader in readers.get(number, ())]
    return len(set(node.inputs())) == 1 and all(torch.Tag.pointwise in reader.operator.tags for reader in behind)
