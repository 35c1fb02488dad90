"""Release numbers that are only compared, as in ``placeholders * width == features.numel()``.

Code that merges images or sounds into a text checks in this way that there are as many placeholders as features.
``placeholders`` is a number in a tensor, the same in the cut network as in the zeroed one. The other numbers count
positions, of which both sides lose the same share, so the comparison has the same result.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch

from niwaki.core.numbers import Combination, Equation, Expression, Literal
from niwaki.rules.axis import Axis
from niwaki.trace.graph import Graph, Node, Run

aten = torch.ops.aten
_WHOLE = (torch.int64, torch.int32)
_COMPARING = (aten.eq, aten.ne)


def compared(graph: Graph, run: Run) -> Iterator[tuple[Node, Node, Equation[Axis]]]:
    """Find products of a whole number in a tensor and a number in Python that are used in one comparison with another
    number in Python, and nowhere else.

    Yields the product, the comparison, and the equation under which the comparison has the same result after a cut.
    """
    if not any(node.operator.overloadpacket in _COMPARING for node in run.nodes):
        return
    uses = Counter(number for node in run.nodes for number in node.inputs())
    uses.update(run.outputs)
    calls = Counter(node.call.key for node in run.nodes)
    products: dict[int, Node] = {}
    for node in run.nodes:
        if calls[node.call.key] > 1 or not _of_two_numbers(graph, node):
            continue
        (given,), (made,), packet = node.inputs(), node.outputs, node.operator.overloadpacket
        assert made is not None
        if packet is aten.mul and graph.values[given].dtype in _WHOLE and graph.values[made].root == made:
            products[made] = node
        elif packet in _COMPARING and given in products and uses[given] == 1:
            times = _quotient(node.call.numbers[0], products[given].call.numbers[0])
            if times is not None:
                yield products[given], node, Equation(times, None, "a number in a comparison", node.location)


def _of_two_numbers(graph: Graph, node: Node) -> bool:
    """Whether an operator is given one number in a tensor, and one in Python that its Python call was given too."""
    inputs, numbers = tuple(node.inputs()), node.call.numbers
    if len(inputs) != 1 or len(numbers) != 1 or graph.values[inputs[0]].shape != ():
        return False
    return len(node.args) == 2 and type(node.args[1]) is int and node.args[1] == numbers[0].value


def _quotient(whole: Expression, part: Expression) -> Expression | None:
    """An expression that is 0, and remains 0 as long as ``whole`` is the same multiple of ``part``.

    A number in a tensor times ``part`` then equals ``whole`` after a cut exactly if it did before. None if ``whole`` is
    not a multiple of ``part``.
    """
    if part.value == 0 or whole.value % part.value:
        return None
    times = Literal(whole.value // part.value)
    return Combination("-", Combination("*", times, part, whole.value), whole, 0)
