"""Which layers make what a branch adds to a stream, from the last one back, as the operators of the first run tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from niwaki.core.structures import Erasures, Structure
from niwaki.erasing.found_erasures import FoundErasures
from niwaki.trace.graph import Graph, Node, Origin, Ref

_OWN = (Origin.PARAMETER, Origin.BUFFER)


@dataclass(frozen=True, slots=True, eq=False)
class LayersBehind:
    """``graph``: of the network, or None where it is not known; ``made``: the operator that returns each value."""

    graph: Graph | None
    made: Mapping[int, Node]

    @classmethod
    def of(cls, erasures: Erasures) -> Self:
        """In the network of some structures."""
        if not isinstance(erasures, FoundErasures):
            return cls(None, {})
        graph = erasures.found.graph
        return cls(
            graph, {number: node for node in graph.runs[0].nodes for number in node.outputs if number is not None}
        )

    def of_term(self, structure: Structure, modules: Mapping[str, nn.Module]) -> list[str]:
        """The paths of the modules whose tensors make the term of ``structure``: BatchNorms, from the end, and the
        first other one. Operators on one value and nothing else are passed; nothing where others come first."""
        if self.graph is None:
            return []
        given = self.graph.runs[0].nodes[structure.join].args[structure.operand]
        found: list[str] = []
        number = given.value if isinstance(given, Ref) else -1
        while (node := self.made.get(number)) is not None:
            values = [(one, self.graph.values[self.graph.values[one].root]) for one in node.inputs()]
            own = [value.name.rpartition(".")[0] for _, value in values if value.origin in _OWN]
            others = [one for one, value in values if value.origin not in _OWN]
            if len(set(own)) > 1 or len(others) != 1:
                return []
            found += own[:1]
            if own and not isinstance(modules.get(own[0]), _BatchNorm):
                return found
            number = others[0]
        return []
