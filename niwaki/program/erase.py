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
from niwaki.program.nodes import CONCATENATIONS, copied_graph, memories, placeholders

aten = torch.ops.aten
_IN_PLACE = {aten.add_.Tensor}
_ADDITIONS = {aten.add.Tensor, *_IN_PLACE}
_STACKS = {aten.stack.default}
_LISTED = CONCATENATIONS | _STACKS  # joins whose first argument is a list
_SUM, _MEAN = aten.sum.dim_IntList, aten.mean.dim


def why_not_taken(module: fx.GraphModule, operand: JoinOperand) -> str | None:
    """Why ``module`` has no join with this operand and another; None if it does."""
    node = next((node for node in module.graph.nodes if node.name == operand.node), None)
    if node is None:
        return "its graph has no such node (nothing is erased from regions under no_grad or autocast)"
    if node.target not in _ADDITIONS | _LISTED or not _is_added(node):
        return f"that is a call of {node.target}"
    given = _operands(node)
    if not 0 <= operand.position < len(given) or len(given) == 1:
        return "it has no such operand"
    if _is_written_over(node, operand.position) and _seen_otherwise(module, node):
        return "what it writes over is used under another name afterwards"
    return None


def _operands(join: fx.Node) -> list[fx.Node]:
    """The tensors that are joined; none if a number is added."""
    given = join.args[0] if join.target in _LISTED else join.args[:2]
    tensors = [one for one in given if isinstance(one, fx.Node)] if isinstance(given, (list, tuple)) else []
    return tensors if join.target in _LISTED or len(tensors) == len(join.args[:2]) else []


def _is_added(join: fx.Node) -> bool:
    """Whether a stack is only summed or averaged; true of other joins."""
    return join.target not in _STACKS or all(user.target in (_SUM, _MEAN) for user in join.users)


def _divide_as_before(graph: fx.Graph, stack: fx.Node, left: int) -> None:
    """Let averages over a stack of which ``left`` operands stay divide by the number that there were."""
    for mean in [user for user in stack.users if user.target is _MEAN]:
        others = {*mean.users}
        with graph.inserting_after(mean):
            scaled = graph.call_function(aten.mul.Tensor, (mean, left / len(_operands(stack))))
        scaled.meta = {key: mean.meta[key] for key in ("val", "stack_trace", "nn_module_stack") if key in mean.meta}
        mean.replace_all_uses_with(scaled, delete_user_cb=others.__contains__)


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
    taken: dict[fx.Node, set[int]] = {}
    for operand in operands:
        taken.setdefault(nodes[operand.node], set()).add(operand.position)
    for join, positions in taken.items():
        left = [one for position, one in enumerate(_operands(join)) if position not in positions]
        if not left:
            raise PlanError(f"The plan erases all operands of the node {join.name!r}, of which one has to stay.")
        if join.target in _LISTED:
            if join.target in _STACKS:
                _divide_as_before(graph, join, len(left))
            join.args = (left, *join.args[1:])
        else:
            _dissolve(module, join, left[0], positions)
    _remove_dead(module)
    for join in list(graph.nodes):  # only now, so that all sizes fit one another before
        if join in taken and join.target in CONCATENATIONS and len(_operands(join)) == 1:
            _dissolve(module, join, _operands(join)[0], ())
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


def _dissolve(module: fx.GraphModule, join: fx.Node, left: fx.Node, taken: Collection[int]) -> None:
    """Let ``left``, the only operand that stays, take the place of ``join``, whose operands ``taken`` go; a copy of it,
    where either is written to later."""
    made = left
    if not (join.target in _IN_PLACE and 0 not in taken) and _is_written(module, join, left):
        with module.graph.inserting_before(join):
            made = module.graph.call_function(aten.clone.default, (left,))
        made.meta = {key: join.meta[key] for key in ("val", "stack_trace", "nn_module_stack") if key in join.meta}
    if join.target in _IN_PLACE and 0 in taken:  # from here on the operand's name, too, stands for the result
        nodes = list(module.graph.nodes)
        later = set(nodes[nodes.index(join) + 1 :])
        _operands(join)[0].replace_all_uses_with(made, delete_user_cb=later.__contains__)
    join.replace_all_uses_with(made)
    module.graph.erase_node(join)


def _is_written(module: fx.GraphModule, join: fx.Node, left: fx.Node) -> bool:
    """Whether anything writes to the memory of a join's result, or of the operand ``left``, later."""
    nodes = list(module.graph.nodes)
    later = nodes[nodes.index(join) + 1 :]
    written = [given for other in later for given in _writes(other)]
    memory = memories(module) if written else {}
    own = memory[join] | memory[left] if written else frozenset()
    return any(not memory[given].isdisjoint(own) for given in written)


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
