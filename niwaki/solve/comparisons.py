"""Numbers that only a comparison asks for: ``placeholders * width == features.numel()``.

So code that merges images or sounds into a text makes sure that there are as many places as features. The first is a
number in a tensor, which is the same in the cut network as in the zeroed one; the others count positions, and both
sides lose the same, so that what the comparison says stays.
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
    """Products of a whole number in a tensor and a number in Python, the comparisons with another number in Python that
    are their only use, and what has to stay for these to come out the same."""
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
    """Whether an operator is given one number in a tensor and one in Python, the one that Python code was given."""
    inputs, numbers = tuple(node.inputs()), node.call.numbers
    if len(inputs) != 1 or len(numbers) != 1 or graph.values[inputs[0]].shape != ():
        return False
    return len(node.args) == 2 and type(node.args[1]) is int and node.args[1] == numbers[0].value


def _quotient(whole: Expression, part: Expression) -> Expression | None:
    """What stays nothing as long as ``whole`` is as many times ``part`` as it is: the number of a tensor times ``part``
    is then ``whole`` if it was before, and is not if it was not."""
    if part.value == 0 or whole.value % part.value:
        return None
    times = Literal(whole.value // part.value)
    return Combination("-", Combination("*", times, part, whole.value), whole, 0)
