"""Take operands from the joins of an exported program, and remove what nothing needs any more."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from dataclasses import replace

import torch
from torch import fx
from torch._ops import OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputSpec, OutputSpec, TensorArgument

from niwaki.core.edits.erase import JoinOperand
from niwaki.errors import PlanError
from niwaki.program.nodes import copied_graph, memories, placeholders

aten = torch.ops.aten
_IN_PLACE = {aten.add_.Tensor}
_JOINS = {aten.add.Tensor, *_IN_PLACE}


def why_not_taken(module: fx.GraphModule, operand: JoinOperand) -> str | None:
    """Why ``module`` has no join with this operand and another; None if it does."""
    node = next((node for node in module.graph.nodes if node.name == operand.node), None)
    if node is None:
        return "its graph has no such node (nothing is erased from regions under no_grad or autocast)"
    if node.target not in _JOINS:
        return f"that is a call of {node.target}"
    two = node.args[:2]
    if operand.position not in (0, 1) or not all(isinstance(one, fx.Node) for one in two):
        return "it has no such operand"
    if _is_written_over(node, operand.position) and _seen_otherwise(module, node):
        return "what it writes over is used under another name afterwards"
    return None


def _is_written_over(join: fx.Node, position: int) -> bool:
    """Whether the operand is the memory that an addition in place writes its result to."""
    return join.target in _IN_PLACE and position == 0


def _seen_otherwise(module: fx.GraphModule, join: fx.Node) -> bool:
    """Whether anything behind an addition in place uses the memory of its result by the name of an earlier node, other
    than the operand itself."""
    nodes = list(module.graph.nodes)
    place, operand = nodes.index(join), join.args[0]
    earlier = set(nodes[:place]) - {operand}
    used = {given for later in nodes[place + 1 :] for given in later.all_input_nodes} & earlier
    memory = memories(module) if used else {}
    return any(not memory[given].isdisjoint(memory[join]) for given in used)


def without(program: ExportedProgram, operands: Collection[JoinOperand], tensors: Collection[str]) -> ExportedProgram:
    """A copy of ``program``, sharing its tensors, without ``operands`` and all that served only them.

    Raises:
        PlanError: something else needs one of ``tensors``, which have to go.
    """
    module = copied_graph(program.graph_module)
    graph = module.graph
    nodes = {node.name: node for node in graph.nodes}
    for operand in operands:
        _take(module, nodes[operand.node], operand.position)
    _remove_dead(module)
    signature = program.graph_signature
    gone = {*tensors}
    kept: list[InputSpec] = []
    for spec, node in zip(signature.input_specs, placeholders(graph), strict=True):
        if spec.target not in gone:
            kept.append(spec)
            continue
        if node.users:
            raise PlanError(
                f"The plan erases {spec.target!r}, and {next(iter(node.users)).name!r} in the program still needs it. "
                "Was the plan made for another program?"
            )
        graph.erase_node(node)
    graph.lint()
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=graph,
        graph_signature=ExportGraphSignature(kept, _outputs(graph, signature)),
        state_dict={name: tensor for name, tensor in program.state_dict.items() if name not in gone},
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=list(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants={name: held for name, held in program.constants.items() if name not in gone},
        verifiers=program.verifiers,
    )


def _outputs(graph: fx.Graph, signature: ExportGraphSignature) -> list[OutputSpec]:
    """The outputs by their present names: another operand has taken the place of a join that is one."""
    (returned,) = graph.output_node().args
    assert isinstance(returned, (list, tuple))
    return [
        replace(spec, arg=TensorArgument(node.name))
        if isinstance(node, fx.Node) and isinstance(spec.arg, TensorArgument)
        else spec
        for spec, node in zip(signature.output_specs, returned, strict=True)
    ]


def _take(module: fx.GraphModule, join: fx.Node, position: int) -> None:
    """Let the other operand take the place of the addition ``join``; a copy of it, where one of the two is written to
    afterwards."""
    operand, other = join.args[position], join.args[1 - position]
    assert isinstance(operand, fx.Node) and isinstance(other, fx.Node)
    made: fx.Node = other
    if not (join.target in _IN_PLACE and position == 1) and _is_written(module, join, (join, other)):
        with module.graph.inserting_before(join):
            made = module.graph.call_function(aten.clone.default, (other,))
        made.meta = {key: join.meta[key] for key in ("val", "stack_trace", "nn_module_stack") if key in join.meta}
    if _is_written_over(join, position):  # from here on the operand's name, too, stands for the result
        nodes = list(module.graph.nodes)
        later = set(nodes[nodes.index(join) + 1 :])
        operand.replace_all_uses_with(made, delete_user_cb=later.__contains__)
    join.replace_all_uses_with(made)
    module.graph.erase_node(join)


def _is_written(module: fx.GraphModule, join: fx.Node, results: Collection[fx.Node]) -> bool:
    """Whether anything behind a join writes to the memory of one of ``results``."""
    nodes = list(module.graph.nodes)
    later = nodes[nodes.index(join) + 1 :]
    written = [given for other in later for given in _writes(other)]
    memory = memories(module) if written else {}
    return any(not memory[given].isdisjoint(memory[result]) for given in written for result in results)


def _remove_dead(module: fx.GraphModule) -> None:
    """Remove what no output follows from. What writes to memory is needed if anything that lives shares that memory."""
    graph = module.graph
    memory = memories(module) if any(True for node in graph.nodes for _ in _writes(node)) else {}
    writing: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        for given in _writes(node):
            for number in memory[given]:
                writing.setdefault(number, []).append(node)
    living: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output"]
    while waiting:
        node = waiting.pop()
        if node not in living:
            living.add(node)
            waiting += node.all_input_nodes
            waiting += [writer for number in memory.get(node, ()) for writer in writing.get(number, ())]
    for node in reversed(list(graph.nodes)):
        if node.op != "placeholder" and node not in living:
            graph.erase_node(node)


def _writes(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that a node writes to."""
    if not isinstance(node.target, OpOverload):
        return
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    for argument in schema:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = given.get(argument.name)
            items = value if isinstance(value, (list, tuple)) else [value]
            yield from (one for one in items if isinstance(one, fx.Node))
