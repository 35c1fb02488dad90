"""Stacks of tensors that are summed or averaged at once, which is another way to add them."""

from __future__ import annotations

import torch

from niwaki.trace.graph import Graph, Node, Run

aten = torch.ops.aten
STACKS = frozenset({aten.stack.default})
_REDUCTIONS = frozenset({aten.sum.dim_IntList, aten.mean.dim})


def added_stacks(graph: Graph, run: Run) -> set[int]:
    """The operators of a run that stack several tensors, and whose results are only summed or averaged along the stack.
    Where a tensor is absent, an average still divides by the number that there were."""
    stacks = {
        node.outputs[0]: place
        for place, node in enumerate(run.nodes)
        if node.operator in STACKS and len(node.args[0]) > 1
    }
    if not stacks:
        return set()
    read: set[int] = set()
    kept = {*run.outputs, *run.escaped}
    for node in run.nodes:
        for number in set(node.inputs()) & stacks.keys():
            assert number is not None
            stack, rank = run.nodes[stacks[number]], len(graph.values[number].shape)
            (kept if not _reduces(node, stack.argument("dim"), rank) else read).add(number)
    return {place for number, place in stacks.items() if number in read and number not in kept}


def _reduces(reader: Node, dim: int, rank: int) -> bool:
    """Whether an operator sums or averages along dimension ``dim`` of ``rank``, and along nothing else."""
    if reader.operator not in _REDUCTIONS:
        return False
    dims = reader.argument("dim")
    return bool(dims) and {one % rank for one in dims} == {dim % rank}
