"""Whether something from outside passes through a structure: its term is then not zero where its producers are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import final

import torch

from niwaki.erasing.flow import Flow, Operand
from niwaki.erasing.vanishing import Producers
from niwaki.rules.constraints import Constraints
from niwaki.rules.label import Label
from niwaki.trace.graph import Graph, Origin

aten = torch.ops.aten
PRODUCTS = frozenset({aten.mul.Tensor, aten.mul_.Tensor, aten.mm.default, aten.bmm.default})
NORMS = frozenset(
    {
        aten.native_batch_norm.default,
        aten._native_batch_norm_legit.default,
        aten._native_batch_norm_legit_no_training.default,
        aten.cudnn_batch_norm.default,
        aten.native_layer_norm.default,
        aten.native_group_norm.default,
    }
)


@final
class Passing:
    """Follows zeros from producers to a term, operator by operator, in the first run.

    A residual stream and all that is added to it are tied along their units, so the rules' promise that a tensor is
    zero where its units are speaks of the whole stream. Here it is looked what of it holds with the producers inside of
    a structure alone: an operator makes zeros if all is zero that carries the units to it; a product, if one factor is;
    a layer or a norm with weights of its own, if these are.
    """

    def __init__(
        self,
        graph: Graph,
        constraints: Constraints,
        flow: Flow,
        producers: Producers,
        given: Mapping[int, tuple[Label | None, ...]],
    ) -> None:
        self._values, self._nodes, self._flow = graph.values, graph.runs[0].nodes, flow
        self._producers, self._given = producers, given
        single = {term.node for term in constraints.macs if len(self._nodes[term.node].outputs) == 1}
        self._layers = single | {place for place, node in enumerate(self._nodes) if node.operator in NORMS}

    def vanishes(
        self, operand: Operand, parts: frozenset[int], producers: Collection[int], inside: Callable[[int], bool]
    ) -> bool:
        """Whether the term is zero where ``producers`` are. ``parts``: of the dimension that it is zero along;
        ``inside``: whether a vertex is in the structure."""
        every = self._producers.of(parts)
        carriers: dict[int, list[int]] = {}
        waiting = sorted(self._makers(operand.join, operand.value))
        while waiting:
            place = waiting.pop()
            if place in carriers or not inside(place) or place >= self._flow.operators:
                continue
            carriers[place] = self._carriers(place, parts)
            for number in carriers[place]:
                waiting += self._makers(place, number)
        zero: dict[int, bool] = {}

        def is_zero(place: int, number: int) -> bool:
            if self._values[number].origin is Origin.PARAMETER:
                return number in producers or number not in every
            makers = self._makers(place, number)
            return bool(makers) and all(zero.get(maker, False) for maker in makers)

        for place in sorted(carriers):
            enough = any if self._nodes[place].operator in PRODUCTS and carriers[place] else all
            zero[place] = enough(is_zero(place, number) for number in carriers[place])
        return is_zero(operand.join, operand.value)

    def _makers(self, place: int, number: int) -> frozenset[int]:
        return self._flow.makers.get((place, number), frozenset())

    def _carriers(self, place: int, parts: frozenset[int]) -> list[int]:
        """What carries the units of ``parts`` to an operator: of a layer its weights."""
        given = list(zip(self._nodes[place].inputs(), self._given[place], strict=True))
        found = [(number, label) for number, label in given if self._producers.follows(label, parts)]
        weights = [number for number, label in found if label is not None and label.weight]
        return weights if place in self._layers and weights else [number for number, _ in found]
