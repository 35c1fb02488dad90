"""Copy the graph of an exported program; find its inputs, what it holds, and which of its results share memory."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import fx, nn
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

from niwaki.trace.fake import failures_not_logged

aten = torch.ops.aten
CONCATENATIONS = frozenset({aten.cat.default, aten.concat.default, aten.concatenate.default})


def copied_graph(source: fx.GraphModule) -> fx.GraphModule:
    """A copy with the names of its nodes: copying alone changes names that Python uses, such as ``input``."""
    made = copy.deepcopy(source)
    _rename(source, made)
    return made


def _rename(source: fx.GraphModule, made: fx.GraphModule) -> None:
    for before, after in zip(source.graph.nodes, made.graph.nodes, strict=True):
        if after.op == "placeholder":
            after.target = before.target
        after.name = before.name
        if before.op == "get_attr":
            held = held_by(source, before)
            if isinstance(held, fx.GraphModule):
                _rename(held, held_by(made, after))


def held_by(module: nn.Module, node: fx.Node) -> Any:
    """What the node ``node``, which fetches an attribute, fetches."""
    held: Any = module
    assert isinstance(node.target, str)
    for part in node.target.split("."):
        held = getattr(held, part)
    return held


def placeholders(graph: fx.Graph) -> list[fx.Node]:
    """The inputs of a graph."""
    return [node for node in graph.nodes if node.op == "placeholder"]


def fake_mode(graph: fx.Graph) -> FakeTensorMode:
    """The mode that the program's metadata belongs to, with its symbols."""
    values = (node.meta.get("val") for node in graph.nodes)
    found = next((value.fake_mode for value in values if isinstance(value, FakeTensor)), None)
    return found if found is not None else FakeTensorMode()


def memories(module: fx.GraphModule) -> dict[fx.Node, frozenset[int]]:
    """For each node numbers that stand for the memory of its results: nodes that have one in common share it.

    The graph is run on fake tensors: schemas do not tell it of all operators (a dropout in eval mode gives back what it
    was given). Where a concatenation has lost operands, its result still has the size that those behind it expect.
    What a region gives may share the memory of all that it is given, and so may what an operator gives that does not
    run, and a tensor inside of ``torch.vmap``, which has no memory of its own to ask for.
    """
    values: dict[fx.Node, Any] = {}
    found: dict[fx.Node, frozenset[int]] = {}
    with torch.no_grad(), fake_mode(module.graph), failures_not_logged():
        for node in module.graph.nodes:
            own = frozenset[int]()
            if node.op == "placeholder":
                values[node] = node.meta.get("val")
            elif node.op == "get_attr":
                values[node] = held_by(module, node)
            elif node.op == "call_function":
                try:
                    if node.target in CONCATENATIONS:
                        values[node] = torch.empty_like(node.meta["val"])
                    elif not isinstance(node.target, HigherOrderOperator):
                        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                        values[node] = node.target(*args, **kwargs)
                except (RuntimeError, ValueError, IndexError, TypeError):
                    pass
                if node not in values:
                    values[node] = node.meta.get("val")
                    own = own.union(*(found[given] for given in node.all_input_nodes))
            tensors = (leaf for leaf in tree_leaves(values.get(node)) if isinstance(leaf, torch.Tensor))
            try:
                found[node] = own | {tensor.untyped_storage()._cdata for tensor in tensors}
            except NotImplementedError:
                found[node] = own.union((-1 - len(found),), *(found[given] for given in node.all_input_nodes))
    return found
