"""What a run computes and throws away: the averaged weights of an attention that nobody asked for."""

from __future__ import annotations

from niwaki.trace.graph import Graph, Origin, Run


def outlasting(run: Run) -> list[int]:
    """What ``run`` computed that is still there when it ends: its outputs, and what modules keep (a loss beside)."""
    made = (number for node in run.nodes for number in node.outputs if number is not None)
    return [number for number in dict.fromkeys(made) if number not in run.ended]


def seen(run: Run) -> set[int]:
    """The values of ``run`` that anything sees: an operator, Python, or whoever holds them when the run ends."""
    read = {number for node in run.nodes for number in node.inputs()}
    return read.union(run.outputs, outlasting(run))


def unused(graph: Graph, run: Run) -> set[int]:
    """The places of operators in ``run`` whose results reach nothing: no output, nothing that is alive when the run
    ends (in an attribute, say, where a loss may find it), no number that Python reads, no parameter, buffer or input.

    Shapes still have to fit there, but that a result changes with what it averages over does no harm.
    """
    values = graph.values
    kept = {value.root for value in values if value.origin is not Origin.COMPUTED or value.number not in run.ended}
    kept.update(values[number].root for number in run.outputs)
    found = set()
    for place in range(len(run.nodes) - 1, -1, -1):
        node = run.nodes[place]
        made = [values[number].root for number in node.outputs if number is not None]
        if made and kept.isdisjoint(made):
            found.add(place)
        else:
            kept.update(values[number].root for number in node.inputs())
    return found
