"""Export a model to a program, and turn a cut `Program` back into an exported one."""

from __future__ import annotations

import copy
import traceback
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils._pytree import tree_leaves

from niwaki.core.libraries import TORCH
from niwaki.errors import PlanError, TraceError, first_line
from niwaki.program.module import REGIONS, Program, Subprogram, needed
from niwaki.program.nodes import copied_graph, fake_mode, held_by, placeholders
from niwaki.program.sizes import replaced
from niwaki.trace.eager import eagerly
from niwaki.trace.fake import FakeTensors
from niwaki.trace.model_state import preserved
from niwaki.trace.structures import ExampleCall, map_tensors, others_in, tensors_in
from niwaki.trace.warmup import warm_up

_RETURNED = (bool, int, float, complex, str, type(None))  # beside tensors, what a program can return


@eagerly()
def exported(model: nn.Module, call: ExampleCall, dynamic_shapes: Any = None) -> ExportedProgram:
    """The eval-mode program of ``model`` for the shapes of one example call; it shares the model's parameters.
    ``dynamic_shapes``: as for `torch.export.export`.

    Raises:
        TraceError: the model cannot be exported.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    pretence = FakeTensors([*tensors_in(call), *model.parameters(), *model.buffers()], _mode_for_export())
    warm_up(model, [call])  # a cache outside of the modules would hold fake tensors
    with preserved(model, others_in(call)):
        pretence.swap(model)
        call = map_tensors(call, pretence.stand_in)
        for module in model.modules():
            module.training = False
        torch.backends.mha.set_fastpath_enabled(False)  # one opaque operator, whose heads cannot be removed
        try:
            program = torch.export.export(model, *call, dynamic_shapes=dynamic_shapes, strict=False)
        except Exception as cause:
            problem = f"{_line(cause)}{type(cause).__qualname__}: {_quoted(cause)}."
            hint = "" if pretence.active else _foreign_outputs(model, call)
            raise TraceError(f"torch.export cannot export the model: {problem}{hint}") from cause
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
    for tensors in (program.state_dict, program.constants):
        tensors.update({name: pretence.original(tensor) for name, tensor in tensors.items()})
    return program


def _mode_for_export() -> FakeTensorMode:
    """A fake tensor mode for a model that is exported."""
    from torch.fx.experimental.symbolic_shapes import ShapeEnv  # half a second, and most users never export

    return FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv(tracked_fakes=[]))


def rebuilt(small: Program) -> ExportedProgram:
    """A cut program as `torch.export.ExportedProgram`, with new sizes, tensors and metadata and nothing else changed.

    Raises:
        PlanError: the sizes do not fit one another; the plan was made for a program with other sizes.
    """
    source = small.source
    module = copied_graph(source.graph_module)
    returned = [spec.kind is OutputKind.USER_OUTPUT for spec in source.graph_signature.output_specs]
    dense = _output_shapes(module.graph, returned)
    mode = fake_mode(module.graph)
    tensors = {**small.state_dict(keep_vars=True), **dict(small.named_buffers(remove_duplicate=False))}
    given = []
    for spec, node in zip(source.graph_signature.input_specs, placeholders(module.graph), strict=True):
        if spec.kind is InputKind.USER_INPUT:
            given.append(node.meta.get("val"))
        else:
            assert spec.target is not None
            given.append(_pretended(mode, tensors[spec.target], node.meta["val"]))
    try:
        with torch.no_grad(), mode:
            _resize(module, small, given)
    except (RuntimeError, TypeError, IndexError, ValueError) as cause:
        raise PlanError(
            f"The plan does not fit this program: with its sizes, an operator fails: {_quoted(cause)}. Was the "
            "plan made for a program that was exported with inputs of other shapes?"
        ) from cause
    for before, after in zip(dense, _output_shapes(module.graph, returned), strict=True):
        if str(before) != str(after):
            raise PlanError(
                f"The plan does not fit this program: an output of the shape {list(before)} would get the shape "
                f"{list(after)}. Was the plan made for a program that was exported with inputs of other shapes?"
            )
    module.recompile()
    return ExportedProgram(
        root=module,
        graph=module.graph,
        graph_signature=source.graph_signature,
        state_dict={name: tensors[name] for name in source.state_dict},
        range_constraints=copy.deepcopy(source.range_constraints),
        module_call_graph=list(source.module_call_graph),
        example_inputs=source.example_inputs,
        constants={name: tensors.get(name, held) for name, held in source.constants.items()},
        verifiers=source.verifiers,
    )


def _pretended(mode: FakeTensorMode, tensor: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """The metadata of a parameter or buffer; for a meta tensor, on the device that its dense fake claims."""
    with torch.no_grad(), mode:
        if tensor.is_meta:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=dense.device)
        return mode.from_tensor(tensor, static_shapes=True)


def _resize(module: fx.GraphModule, block: Subprogram, given: Sequence[Any]) -> Any:
    """Write the numbers of ``block`` into the graph of ``module`` and recompute the metadata of its nodes; returns that
    of the output."""
    graph, numbers = module.graph, block.numbers()
    live = set(needed(graph))
    for node in reversed(list(graph.nodes)):
        if node not in live and not _still_true(node) and not node.users:
            graph.erase_node(node)
    # Before any node is changed: arguments that a call leaves to torch are computed from the dense metadata.
    calls = {node: replaced(node, numbers[node.name]) for node in graph.nodes if node.name in numbers}
    rest = iter(given)
    output = None
    for node in graph.nodes:
        if node.op == "placeholder":
            value = next(rest)
        elif node.op == "get_attr":
            value = held_by(module, node)
        elif node.op == "call_function":
            if node in calls:  # all but those that only check
                node.target, (node.args, node.kwargs) = calls[node]
            value = _called(module, node, block)
        else:
            output = value = fx.node.map_arg(node.args[0], _remembered)
        if "val" in node.meta or node.op == "get_attr":
            node.meta["val"] = value
        node.meta.pop("tensor_meta", None)
    graph.lint()
    return output


def _called(module: fx.GraphModule, node: fx.Node, block: Subprogram) -> Any:
    assert callable(node.target)
    args: Any = fx.node.map_arg(node.args, _remembered)
    kwargs: Any = fx.node.map_arg(node.kwargs, _remembered)
    if node.target in REGIONS:
        place = next(i for i, argument in enumerate(args) if isinstance(argument, fx.GraphModule))
        fetched = node.args[place]
        assert isinstance(fetched, fx.Node)
        return _resize(args[place], block.region(fetched.name), args[place + 1 :])
    return node.target(*args, **kwargs)


def _remembered(node: fx.Node) -> Any:
    return node.meta["val"]


def _still_true(node: fx.Node) -> bool:
    """Whether a node checks the type and device of a tensor, not its sizes."""
    metadata = torch.ops.aten._assert_tensor_metadata.default
    sizes = [*node.args[1:3], node.kwargs.get("size"), node.kwargs.get("stride")]
    return node.target is metadata and all(given is None for given in sizes)


def _output_shapes(graph: fx.Graph, returned: Sequence[bool]) -> list[torch.Size]:
    """The shapes of what is returned to the user, and not written to a buffer."""
    (output,) = [node for node in graph.nodes if node.op == "output"]
    nodes = [node for node, is_returned in zip(output.args[0], returned, strict=True) if is_returned]
    values = [node.meta.get("val") for node in nodes if isinstance(node, fx.Node)]
    return [value.shape for value in values if isinstance(value, torch.Tensor)]


def _line(cause: Exception) -> str:
    """The innermost line of the user's code in the traceback of an error, as the start of a sentence."""
    files = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(cause.__traceback__)]
    users = [f"{file}:{line}: " for file, line in files if not file.startswith((TORCH, __file__, "<"))]
    return users[-1] if users else ""


def _quoted(cause: Exception) -> str:
    return first_line(cause).rstrip(".") or "no message"


def _foreign_outputs(model: nn.Module, call: ExampleCall) -> str:
    """Advice about objects among the outputs, which a program cannot return; else an empty text."""
    args, kwargs = call
    with torch.no_grad():
        try:
            result = model(*args, **kwargs)
        except Exception:  # noqa: BLE001 - why the model does not run is said by the error that led here
            return ""
    leaves = (leaf for leaf in tree_leaves(result) if not isinstance(leaf, (torch.Tensor, *_RETURNED)))
    found = sorted({type(leaf).__qualname__ for leaf in leaves})
    if not found:
        return ""
    return (
        f" The model returns {', '.join(found)} beside its tensors, and a program can return tensors only. Make it "
        "return none: where it is a key-value cache of transformers, by model.config.use_cache = False."
    )
