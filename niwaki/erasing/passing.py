"""Whether something from outside passes through a structure: its term is then not zero where its producers are."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import final

from niwaki.erasing.flow import Flow, Operand, writes
from niwaki.erasing.vanishing import Producers
from niwaki.rules.label import Label
from niwaki.rules.zeros import LIFTS, MIXTURES, PRODUCTS, QUOTIENTS
from niwaki.trace.graph import Graph, Origin, Ref, Run

NEVER: list[tuple[bool, list[int]]] = [(True, [])]  # none of no numbers is zero


@final
class Passing:
    """Follows zeros from producers to a term, operator by operator, in one run.

    A residual stream and all that is added to it are tied along their units, so the rules' promise that a tensor is
    zero where its units are speaks of the whole stream. Here it is looked what of it holds with the producers inside of
    a structure alone: an operator makes zeros if all is zero that carries the units to it; a product, a layer or a
    norm, if one factor is and what it adds; an operator that writes to a part of a tensor, if all that it is given is;
    and no quotient of them may divide by what vanishes as well.
    """

    def __init__(
        self,
        graph: Graph,
        run: Run,
        flow: Flow,
        producers: Producers,
        given: Mapping[int, tuple[Label | None, ...]],
    ) -> None:
        self._values, self._nodes, self._flow = graph.values, run.nodes, flow
        self._producers, self._given = producers, given
        self._inverting = [p for p, node in enumerate(run.nodes) if node.operator in QUOTIENTS]

    def vanishes(
        self,
        operand: Operand,
        parts: frozenset[int],
        producers: Collection[int],
        inside: Callable[[int], bool],
        closed: Collection[tuple[int, int]] = (),
    ) -> bool:
        """Whether the term is zero where ``producers`` are. ``parts``: of the dimension that it is zero along;
        ``inside``: whether a vertex is in the structure; ``closed``: operators, and values that are zero there."""
        every = self._producers.of(parts)
        asked: dict[int, list[tuple[bool, list[int]]]] = {}
        waiting = sorted(self._makers(operand.join, operand.value))
        while waiting:
            place = waiting.pop()
            if place in asked or not inside(place) or place >= self._flow.operators:
                continue
            asked[place] = self._asked(place, parts)
            for _, numbers in asked[place]:
                for number in numbers:
                    waiting += self._makers(place, number)
        zero: dict[int, bool] = {}

        def is_zero(place: int, number: int) -> bool:
            if (place, number) in closed:
                return True
            if self._values[number].origin is Origin.PARAMETER:
                return number in producers or number not in every
            makers = self._makers(place, number)
            return bool(makers) and all(zero.get(maker, False) for maker in makers)

        if any(self._divides_by_zero(place, producers, inside) for place in self._inverting if inside(place)):
            return False
        for place in sorted(asked):
            zero[place] = all(
                (any if one_is_enough else all)(is_zero(place, number) for number in numbers)
                for one_is_enough, numbers in asked[place]
            )
        label = self._given[operand.join][operand.position]
        return self._producers.follows(label, parts) and is_zero(operand.join, operand.value)

    def _makers(self, place: int, number: int) -> frozenset[int]:
        return self._flow.makers.get((place, number), frozenset())

    def _divides_by_zero(self, place: int, producers: Collection[int], inside: Callable[[int], bool]) -> bool:
        """Whether an operator divides by what ``producers`` make (or has no value where that is zero), with nothing in
        between that is above zero."""
        node = self._nodes[place]
        said = QUOTIENTS[node.operator]
        if said.negative is not None and node.argument(said.negative) >= 0:
            return False
        divisor = node.argument(said.divisor)
        waiting, seen = [(place, divisor.value)] if isinstance(divisor, Ref) else [], set[int]()
        while waiting:
            reader, number = waiting.pop()
            if number in producers:
                return True
            for maker in self._makers(reader, number):
                if maker not in seen and maker < self._flow.operators and inside(maker) and not self._lifts(maker):
                    seen.add(maker)
                    waiting += [(maker, one) for one in self._nodes[maker].inputs()]
        return False

    def _lifts(self, place: int) -> bool:
        node = self._nodes[place]
        said = LIFTS.get(node.operator)
        if said is None or said.number is None:
            return said is not None
        number = node.argument(said.number)
        return isinstance(number, (int, float)) and number != 0

    def _asked(self, place: int, parts: frozenset[int]) -> list[tuple[bool, list[int]]]:
        """What has to be zero for an operator to make zeros: of each list all, or one where one is enough."""
        node = self._nodes[place]
        labels = dict(zip(node.inputs(), self._given[place], strict=True))
        carriers = [number for number, label in labels.items() if self._producers.follows(label, parts)]
        if node.operator in PRODUCTS:
            said = PRODUCTS[node.operator]
            factors = [one.value for one in map(node.argument, said.factors) if isinstance(one, Ref)]
            plus = None if said.plus is None else node.argument(said.plus)
            asked = [(True, [number for number in factors if number in carriers])]
            if isinstance(plus, Ref):
                asked.append((True, [plus.value] if plus.value in carriers else []))
            return asked
        if node.operator in MIXTURES or any(True for _ in writes(node)):
            entries = [number for number in labels if self._values[number].dtype.is_floating_point]
            return [(False, entries), *([] if set(entries) <= set(carriers) else NEVER)]
        divisor = node.argument(QUOTIENTS[node.operator].divisor) if node.operator in QUOTIENTS else None
        others = set(labels) - set(carriers) - ({divisor.value} if isinstance(divisor, Ref) else set())
        return [(False, carriers), *(NEVER if any(self._idle(number, labels[number]) for number in others) else [])]

    def _idle(self, number: int, label: Label | None) -> bool:
        """Whether a tensor counted as zero for the rules only because none of its positions can be removed."""
        if label is None or not self._values[number].dtype.is_floating_point:
            return False
        return any(zero and not axis.free for zero, axis in zip(label.zero, label.axes, strict=True))
