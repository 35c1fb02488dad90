"""What vanishes together, and what may be erased together, beside a brute force that knows nothing but reachability."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pytest
import rustworkx as rx

from niwaki.erasing.flow import Flow, Operand
from niwaki.erasing.operand_tree import OperandTree
from niwaki.erasing.validity import Validity


def flow_of(
    operators: int, arrows: Iterable[tuple[int, int]], joins: dict[int, tuple[int, int]], out: list[int]
) -> Flow:
    """A flow of ``operators``, of which 0 is the input; ``joins``: the two operators that an addition is given."""
    graph: rx.PyDiGraph[None, None] = rx.PyDiGraph(multigraph=False)
    graph.add_nodes_from([None] * operators)
    graph.add_edges_from_no_data(list(arrows))
    flow = Flow(graph, operators, {}, {0: 0}, tuple(out), -1)
    for join, given in joins.items():
        for position, maker in enumerate(given):
            vertex = graph.add_node(None)
            graph.add_edges_from_no_data([(maker, vertex), (vertex, join)])
            flow.operands[vertex] = Operand(join, position, maker)
            flow.joins.setdefault(join, []).append(vertex)
    flow.sink = graph.add_node(None)
    graph.add_edges_from_no_data([(vertex, flow.sink) for vertex in out])
    return flow


def drawn(seed: int) -> Flow:
    """A random network: every operator reads one or two earlier ones, and a third of those with two add them."""
    rng = np.random.default_rng(seed)
    operators = int(rng.integers(4, 14))
    arrows: list[tuple[int, int]] = []
    joins: dict[int, tuple[int, int]] = {}
    for one in range(1, operators):
        given = rng.choice(one, size=min(one, int(rng.integers(1, 3))), replace=False).tolist()
        if len(given) > 1 and rng.random() < 0.7:
            joins[one] = (given[0], given[1])
        elif rng.random() > 0.1:  # else it follows from nothing but parameters
            arrows += [(maker, one) for maker in given]
    out = [operators - 1, *rng.choice(operators, size=int(rng.integers(0, 2))).tolist()]
    return flow_of(operators, arrows, joins, list(dict.fromkeys(out)))


def reached(flow: Flow, start: Iterable[int], without: Iterable[int] = (), backwards: bool = False) -> set[int]:
    """All vertices that are reached from ``start``, not through ``without``."""
    step = flow.graph.predecessor_indices if backwards else flow.graph.successor_indices
    closed, waiting = set(without), [vertex for vertex in start if vertex not in set(without)]
    found = set(waiting)
    while waiting:
        for vertex in step(waiting.pop()):
            if vertex not in found and vertex not in closed:
                found.add(vertex)
                waiting.append(vertex)
    return found


def wrong(flow: Flow, erased: set[int]) -> bool:
    """Whether an output that followed from the input does so no more, or an addition of what is left has no operand."""
    before, after = reached(flow, [0]), reached(flow, [0], erased)
    live = reached(flow, [flow.sink], erased, backwards=True)
    empty = any(join in live and erased.issuperset(given) for join, given in flow.joins.items())
    return empty or any(output in before and output not in after for output in flow.outputs)


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_what_vanishes_with_an_operand(first: int) -> None:
    """What no output is reached from once the operand is taken out."""
    compared = 0
    for seed in range(first, first + 100):
        flow = drawn(seed)
        nesting = OperandTree.of(flow)
        useful = reached(flow, [flow.sink], backwards=True)
        assert set(nesting.order) == useful
        for operand in flow.operands:
            if operand not in useful:
                assert operand not in nesting.around
                continue
            expected = useful - reached(flow, [flow.sink], [operand], backwards=True)
            assert set(nesting.within(operand)) == expected
            assert all(
                nesting.contains(operand, vertex) == (vertex in expected) for vertex in flow.graph.node_indices()
            )
            outer = [other for other in nesting.around if other != operand and nesting.contains(other, operand)]
            around = min(outer, key=lambda other: len(nesting.within(other)), default=flow.sink)
            assert nesting.around[operand] == around
            compared += len(expected) > 1
        ones = dict.fromkeys(nesting.around, 1)
        counted = {o: sum(nesting.contains(o, other) for other in nesting.around) for o in nesting.around}
        assert nesting.summed(ones) == counted
        for pair in zip(nesting.order[1:], nesting.order[2:], strict=False):
            both = [o for o in nesting.around if all(nesting.contains(o, vertex) for vertex in pair)]
            least = min(both, key=lambda o: len(nesting.within(o)), default=flow.sink)
            assert nesting.common(list(pair)) == least
    assert compared > 20


@pytest.mark.parametrize("first", range(0, 600, 100))
def test_what_may_be_erased_together(first: int) -> None:
    """In random order: whatever is erased is valid, and whatever is refused would not be."""
    refused = erased = 0
    for seed in range(first, first + 100):
        flow = drawn(seed)
        nesting = OperandTree.of(flow)
        validity = Validity(flow, [0], nesting)
        for operand in np.random.default_rng(seed).permutation(sorted(nesting.around)).tolist():
            before = set(validity.erased)
            assert validity.why_not(operand) == (why := validity.erase(operand))
            if why is None:
                assert validity.erased == before | {operand}
                assert not wrong(flow, before | {operand})
                erased += 1
            else:
                assert validity.erased == before
                inside = any(nesting.contains(other, operand) for other in before)
                assert inside or wrong(flow, before | {operand}) or _no_operand(flow, before | {operand})
                refused += 1
    assert erased > 50 and refused > 50


def _no_operand(flow: Flow, gone: set[int]) -> bool:
    return any(gone.issuperset(given) for given in flow.joins.values())


def test_each_alone_but_not_together() -> None:
    """Two branches that are added to one another and nothing else."""
    flow = flow_of(4, [(0, 1), (0, 2)], {3: (1, 2)}, [3])
    one, other = flow.joins[3]
    for first, second in ((one, other), (other, one)):
        validity = Validity(flow, [0], OperandTree.of(flow))
        assert validity.why_not(first) is None and validity.why_not(second) is None
        assert validity.erase(first) is None
        assert validity.erase(second) == "nothing would be left to join"


def test_removal_that_disconnects_is_refused() -> None:
    """A table of positions is added to the only thing that knows the input."""
    flow = flow_of(4, [(0, 1)], {3: (1, 2)}, [3])  # operator 2 has no input
    embedded, positions = flow.joins[3]
    validity = Validity(flow, [0], OperandTree.of(flow))
    assert validity.erase(embedded) == "an output would no longer depend on any input"
    assert validity.erase(positions) is None


def test_what_alone_it_fed_goes_too() -> None:
    """Isolated remains: the operators before a branch that nothing else reads."""
    flow = flow_of(6, [(0, 1), (1, 2), (2, 3)], {4: (0, 3)}, [5])
    flow.graph.add_edge(4, 5, None)
    _, branch = flow.joins[4]
    assert set(OperandTree.of(flow).within(branch)) == {branch, 1, 2, 3}


def test_one_structure_inside_of_another() -> None:
    flow = flow_of(6, [(0, 1), (1, 2), (3, 4)], {3: (1, 2), 5: (0, 4)}, [5])
    inner, outer = flow.joins[3][1], flow.joins[5][1]
    nesting = OperandTree.of(flow)
    assert nesting.around[inner] == outer
    validity = Validity(flow, [0], nesting)
    assert validity.erase(outer) is None
    assert validity.erase(inner) == "it is part of what is erased already"


def test_ten_thousand_candidates() -> None:
    """A stack of residual blocks, all of them erased: the cost does not grow with the square of their number."""
    blocks, arrows, joins, last = 10_000, [], {}, 0
    for block in range(blocks):
        branch, join = 2 * block + 1, 2 * block + 2
        arrows.append((last, branch))
        joins[join] = (last, branch)
        last = join
    flow = flow_of(2 * blocks + 1, arrows, joins, [last])
    nesting = OperandTree.of(flow)
    validity = Validity(flow, [0], nesting)
    assert all(validity.erase(flow.joins[join][1]) is None for join in joins)
    assert validity.erase(flow.joins[2][0]) == "nothing would be left to join"
