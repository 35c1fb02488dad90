"""Take operands from the joins of an exported program, and remove what nothing needs any more."""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import compress

import torch
from torch import fx
from torch._ops import HigherOrderOperator, OpOverload
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils._pytree import tree_leaves

from niwaki.core.edits import edited_by_hand
from niwaki.core.edits.erase import JoinOperand
from niwaki.errors import PlanError
from niwaki.program.memory import SharedMemory, written
from niwaki.program.nodes import CONCATENATIONS, copied_graph, memories, placeholders

aten = torch.ops.aten
_IN_PLACE = {aten.add_.Tensor}
_ADDITIONS = {aten.add.Tensor, *_IN_PLACE}
_STACKS = {aten.stack.default}
_LISTED = CONCATENATIONS | _STACKS  # joins whose first argument is a list
_SUM, _MEAN = aten.sum.dim_IntList, aten.mean.dim
_WRITTEN_BACK = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


def why_not_taken(memory: SharedMemory, nodes: Mapping[str, fx.Node], operand: JoinOperand) -> str | None:
    """Why a graph with these ``nodes``, by name, has no join with this operand and another; None if it does."""
    node = nodes.get(operand.node)
    if node is None:
        return "its graph has no such node (nothing is erased from regions under no_grad or autocast)"
    if node.target not in _ADDITIONS | _LISTED or not _is_added(node):
        return f"that is a call of {node.target}"
    given = _operands(node)
    if not 0 <= operand.position < len(given) or len(given) == 1:
        return "it has no such operand"
    if _is_written_over(node, operand.position) and memory.used_otherwise(node, given[0]):
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


def _divide_as_before(memory: SharedMemory, stack: fx.Node, left: int) -> None:
    """Let averages over a stack of which ``left`` operands stay divide by the number that there were."""
    for mean in [user for user in stack.users if user.target is _MEAN]:
        others = {*mean.users}
        with mean.graph.inserting_after(mean):
            scaled = mean.graph.call_function(aten.mul.Tensor, (mean, left / len(_operands(stack))))
        scaled.meta = {key: mean.meta[key] for key in ("val", "stack_trace", "nn_module_stack") if key in mean.meta}
        memory.stands_for(scaled, mean)
        mean.replace_all_uses_with(scaled, delete_user_cb=others.__contains__)


def _is_written_over(join: fx.Node, position: int) -> bool:
    """Whether the operand is the memory that an addition in place writes its result to."""
    return join.target in _IN_PLACE and position == 0


def without(program: ExportedProgram, operands: Collection[JoinOperand], tensors: Collection[str]) -> ExportedProgram:
    """A copy of ``program``, sharing its tensors, without ``operands`` and all that served only them. ``tensors``: what
    goes by its first name goes by its others too.

    Raises:
        PlanError: something else needs one of ``tensors``, which have to go; or nothing needs a parameter any more that
            is not one of them.
    """
    module = copied_graph(program.graph_module)
    graph = module.graph
    needed = _needed(graph)
    nodes = {node.name: node for node in graph.nodes}
    memory = SharedMemory(module)
    taken: dict[fx.Node, set[int]] = {}
    for operand in operands:
        taken.setdefault(nodes[operand.node], set()).add(operand.position)
    for join, positions in taken.items():
        left = [one for position, one in enumerate(_operands(join)) if position not in positions]
        if not left:
            raise PlanError(f"The plan erases all operands of the node {join.name!r}, of which one has to stay.")
        if join.target in _LISTED:
            if join.target in _STACKS:
                _divide_as_before(memory, join, len(left))
            join.args = (left, *join.args[1:])
        else:
            _dissolve(memory, join, left[0], positions)
    signature, gone = program.graph_signature, _by_all_names(program, tensors)
    written_back = _without_writes(graph, signature, gone)
    _remove_dead(module)
    for join in list(graph.nodes):  # only now, so that all sizes fit one another before
        if join in taken and join.target in CONCATENATIONS and len(_operands(join)) == 1:
            _dissolve(memory, join, _operands(join)[0], ())
    kept: list[InputSpec] = []
    for spec, node in zip(signature.input_specs, placeholders(graph), strict=True):
        if spec.target not in gone:
            if spec.kind is InputKind.PARAMETER and node.name in needed and not node.users:
                raise edited_by_hand(f"erases all that reads {spec.target!r}, and keeps it")
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
        graph_signature=ExportGraphSignature(kept, _outputs(graph, written_back)),
        state_dict={name: tensor for name, tensor in program.state_dict.items() if name not in gone},
        range_constraints=copy.deepcopy(program.range_constraints),
        module_call_graph=list(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants={name: held for name, held in program.constants.items() if name not in gone},
        verifiers=program.verifiers,
    )


def _needed(graph: fx.Graph) -> set[str]:
    """The names of the nodes that outputs follow from."""
    waiting = [node for node in graph.nodes if node.op == "output"]
    found = {node.name for node in waiting}
    while waiting:
        for node in waiting.pop().all_input_nodes:
            if node.name not in found:
                found.add(node.name)
                waiting.append(node)
    return found


def _by_all_names(program: ExportedProgram, tensors: Collection[str]) -> set[str]:
    """``tensors`` and what is tied to them."""
    held = {**program.state_dict, **program.constants}
    own = {id(held[name]) for name in tensors if name in held}
    return {*tensors} | {name for name, tensor in held.items() if id(tensor) in own}


def _without_writes(graph: fx.Graph, signature: ExportGraphSignature, gone: Collection[str]) -> list[OutputSpec]:
    """Take from the outputs what is written to buffers and parameters in the end, where these are ``gone`` or it
    follows from others that are; what is left of the outputs."""
    follows = {
        node for spec, node in zip(signature.input_specs, placeholders(graph), strict=True) if spec.target in gone
    }
    for node in graph.nodes:
        if not follows.isdisjoint(node.all_input_nodes):
            follows.add(node)
    output = graph.output_node()
    (returned,) = output.args
    assert isinstance(returned, (list, tuple))
    stays = [
        spec.kind not in _WRITTEN_BACK or (spec.target not in gone and node not in follows)
        for spec, node in zip(signature.output_specs, returned, strict=True)
    ]
    output.args = (tuple(compress(returned, stays)),)
    return list(compress(signature.output_specs, stays))


def _outputs(graph: fx.Graph, specs: Sequence[OutputSpec]) -> list[OutputSpec]:
    """The outputs by their present names: another operand has taken the place of a join that is one."""
    (returned,) = graph.output_node().args
    assert isinstance(returned, (list, tuple))
    return [
        replace(spec, arg=TensorArgument(node.name))
        if isinstance(node, fx.Node) and isinstance(spec.arg, TensorArgument)
        else spec
        for spec, node in zip(specs, returned, strict=True)
    ]


def _dissolve(memory: SharedMemory, join: fx.Node, left: fx.Node, taken: Collection[int]) -> None:
    """Let ``left``, the only operand that stays, take the place of ``join``, whose operands ``taken`` go; a copy of it,
    where either is written to later."""
    made, place = left, memory.place[join]
    over = any(_is_written_over(join, position) for position in taken)
    if (over or join.target not in _IN_PLACE) and memory.is_written_behind(join, left):
        with join.graph.inserting_before(join):
            made = join.graph.call_function(aten.clone.default, (left,))
        made.meta = {key: join.meta[key] for key in ("val", "stack_trace", "nn_module_stack") if key in join.meta}
        memory.stands_for(made, join)
    else:
        memory.hand_over(join, left)
    if over:  # from here on the operand's name, too, stands for the result
        _operands(join)[0].replace_all_uses_with(made, delete_user_cb=lambda user: memory.place[user] > place)
    join.replace_all_uses_with(made)
    join.graph.erase_node(join)


def _remove_dead(module: fx.GraphModule) -> None:
    """Remove what no output follows from. What writes to memory is needed if anything that lives reads that memory
    afterwards; what has no result that anything reads and is no operator, such as the begin and the end of a
    ``torch.vmap``, is there for what it does."""
    graph = module.graph
    memory = memories(module) if any(True for node in graph.nodes for _ in written(node)) else {}
    place = {node: number for number, node in enumerate(graph.nodes)}
    writing: dict[int, list[fx.Node]] = {}
    for node in graph.nodes:
        for given in written(node):
            for number in memory[given]:
                writing.setdefault(number, []).append(node)

    def written_before(reader: fx.Node) -> Iterator[fx.Node]:
        """The last writers to what ``reader`` is given: those before them write to what these are given."""
        for number in {number for given in reader.all_input_nodes for number in memory.get(given, ())}:
            writers = writing.get(number, ())
            before = bisect_left(writers, place[reader], key=place.__getitem__)
            yield from writers[max(before - 1, 0) : before]

    living: set[fx.Node] = set()
    waiting = [node for node in graph.nodes if node.op == "output" or _is_done_for_its_effect(node)]
    while waiting:
        node = waiting.pop()
        if node not in living:
            living.add(node)
            waiting += [*node.all_input_nodes, *written_before(node)]
    for node in reversed(list(graph.nodes)):
        if node.op != "placeholder" and node not in living:
            graph.erase_node(node)


def _is_done_for_its_effect(node: fx.Node) -> bool:
    """Whether a node calls a function which is no operator, gives it no tensor, and has no use for its result."""
    given = tree_leaves([one.meta.get("val") for one in node.all_input_nodes])
    return (
        node.op == "call_function"
        and not isinstance(node.target, (OpOverload, HigherOrderOperator))
        and not node.users
        and not any(isinstance(one, torch.Tensor) for one in given)
    )
