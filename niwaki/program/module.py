"""An exported program as a module whose sizes are attributes."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from inspect import Parameter, Signature
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from niwaki.core.edits.base import Factor
from niwaki.core.edits.erase import GraphModule, JoinOperand
from niwaki.core.libraries import TORCH
from niwaki.core.location import Location, running_at
from niwaki.errors import TraceError
from niwaki.program.erase import why_not_taken, without
from niwaki.program.memory import SharedMemory
from niwaki.program.sizes import CallNumbers, spelled_out, with_numbers

aten = torch.ops.aten
_SIZES, _FLOAT = ".sizes", ".float"  # no parameter or module can have a dot in its name

# Called for every call in a running program, with a text that names the call, and its result.
observer: ContextVar[Callable[[str, Any], None] | None] = ContextVar("observer", default=None)

# Operators that only check: they would compare with the sizes of the dense network.
CHECKS = frozenset(
    {
        aten._assert_tensor_metadata.default,
        aten._assert_scalar.default,
        aten._assert_async.msg,
        aten._assert_async.default,
        aten.sym_constrain_range.default,
        aten.sym_constrain_range_for_size.default,
    }
)

# Shape reads in the form that the tracer follows, and functions whose rules depend on the name of the call.
_CALLED_AS: Mapping[Any, Callable[..., Any]] = {
    aten.sym_size.int: torch.Tensor.size,
    aten.sym_numel.default: torch.Tensor.numel,
    aten.narrow.default: torch.narrow,
    aten.unflatten.int: torch.unflatten,
    aten.rms_norm.default: torch.rms_norm,
}


def _grad_mode(enabled: bool, block: Subprogram, *args: Any) -> Any:
    return _within(torch.set_grad_enabled(enabled), block, args)


def _autocast(
    kind: str, dtype: torch.dtype | None, enabled: bool, cache: bool | None, block: Subprogram, *args: Any
) -> Any:
    return _within(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cache), block, args)


def _within(context: AbstractContextManager[Any], block: Subprogram, args: Sequence[Any]) -> Any:
    with context:
        return block.run(args)


# Regions of a program under a setting; other operators that take graphs are control flow.
REGIONS: Mapping[Any, Callable[..., Any]] = {
    torch.ops.higher_order.wrap_with_set_grad_enabled: _grad_mode,
    torch.ops.higher_order.wrap_with_autocast: _autocast,
}


@dataclass(frozen=True, slots=True)
class _Value:
    """Stands for the result of an earlier node."""

    name: str


@dataclass(frozen=True, slots=True)
class _Size:
    """Stands for the size with this index among those of the node."""

    index: int


@dataclass(frozen=True, slots=True)
class _Float:
    """Stands for a float of the node: the attribute it is in."""

    name: str


@dataclass(frozen=True, slots=True)
class _Step:
    """One call; ``over``: the values that no later call needs."""

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    floats: tuple[str, ...]
    location: Location
    over: tuple[str, ...]


class _Script(list[_Step]):
    """The calls in order, and the other values that copies of a block share. (Not a list: the items of lists in
    attributes are searched for numbers and tensors.)"""

    def __init__(self, program: ExportedProgram, graph: fx.Graph) -> None:
        super().__init__()
        self.program, self.graph = program, graph
        self.inputs = tuple(node.name for node in graph.nodes if node.op == "placeholder")
        self.constants: dict[str, Any] = {}
        self.output: Any = None

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The nodes of the program's own graph, by name."""
        return {node.name: node for node in self.program.graph.nodes}

    @cached_property
    def memory(self) -> SharedMemory:
        """Which of these nodes share memory."""
        return SharedMemory(self.program.graph_module)

    def __deepcopy__(self, memo: object) -> _Script:
        return self


class Subprogram(nn.Module):
    """A graph that runs call by call. The sizes of the node ``n`` are in the attribute ``n.sizes``, its floats in
    ``n.float0``, ``n.float1``, ..."""

    _script: _Script

    def __init__(self) -> None:
        super().__init__()
        self._gates: dict[str, dict[int, tuple[Factor, ...]]] = {}  # calls, and what is made of some of their arguments

    def _read(self, program: ExportedProgram, module: nn.Module, graph: fx.Graph, region: str = "") -> None:
        """Read the calls of ``graph``, and the sizes of those that have none yet; its inner graphs are attributes of
        ``module``. ``region``: what comes before the names of its nodes."""
        script = self._script = _Script(program, graph)
        live = needed(graph)
        last = {given: node for node in live for given in node.all_input_nodes}
        for node in live:
            if node.meta.get("unbacked_bindings"):
                raise TraceError(
                    f"The exported program has a size that depends on data: the one that {node.name!r} "
                    f"({node.target}) gives at {location_of(node)}. niwaki follows programs whose sizes come from the "
                    "shapes of their inputs. Cut the model itself, without as_graph."
                )
            if node.op == "get_attr":
                self._fetch(node, module, region)
            elif node.op == "call_function":
                over = tuple(given.name for given in node.all_input_nodes if last[given] is node)
                script.append(self._step(node, over, region))
            elif node.op == "output":
                script.output = _template(node.args[0])
            elif node.op != "placeholder":
                raise TraceError(f"The exported program has a node of the kind {node.op!r}, which niwaki cannot run.")

    def _fetch(self, node: fx.Node, module: nn.Module, region: str) -> None:
        assert isinstance(node.target, str)
        held: Any = module
        for part in node.target.split("."):
            held = getattr(held, part)
        name = f"{node.name} region"
        if isinstance(held, fx.GraphModule):
            block = self._modules.get(name) or Subprogram()
            assert isinstance(block, Subprogram)
            block._read(self._script.program, held, held.graph, f"{region}{node.name}.")
            self.add_module(name, block)
        else:
            self._script.constants[node.name] = held

    def _step(self, node: fx.Node, over: tuple[str, ...], region: str) -> _Step:
        if isinstance(node.target, torch._ops.HigherOrderOperator) and node.target not in REGIONS:
            raise TraceError(
                f"The exported program contains {node.target}, at {location_of(node)}, which niwaki cannot follow: "
                "only plain calls and regions of no_grad and autocast. Export a model without control flow on tensors."
            )
        target, arguments = spelled_out(node)
        sizes: list[int] = []
        floats: list[str] = []

        def keep_size(size: int) -> _Size:
            sizes.append(size)
            return _Size(len(sizes) - 1)

        def keep_float(value: float) -> _Float:
            floats.append(f"{node.name}{_FLOAT}{len(floats)}")
            self.__dict__.setdefault(floats[-1], value)
            return _Float(floats[-1])

        args, kwargs = with_numbers(target, arguments, keep_size, keep_float)
        if sizes:
            self.__dict__.setdefault(node.name + _SIZES, tuple(sizes))
        function = REGIONS.get(target) or _CALLED_AS.get(target, target)
        place = replace(location_of(node), node=region + node.name)
        return _Step(node.name, function, _template(args), _template(kwargs), tuple(floats), place, over)

    def numbers(self) -> dict[str, CallNumbers]:
        """The present numbers of every call."""
        held = self.__dict__
        return {
            step.name: CallNumbers(held.get(step.name + _SIZES, ()), tuple(held[name] for name in step.floats))
            for step in self._script
        }

    def region(self, name: str) -> Subprogram:
        """The block of the graph that the node ``name`` fetches."""
        block = self.get_submodule(f"{name} region")
        assert isinstance(block, Subprogram)
        return block

    def run(self, given: Sequence[Any]) -> Any:
        """The output of the graph for the values of its placeholders."""
        script = self._script
        values: dict[str, Any] = dict(zip(script.inputs, given, strict=True)) | script.constants
        for name in self._modules:
            if name.endswith(" region"):
                values[name.removesuffix(" region")] = self._modules[name]
        outer, observe = running_at.get(), observer.get()
        try:
            for step in script:
                running_at.set(step.location)
                args, kwargs = (self._filled(given, values, step.name) for given in (step.args, step.kwargs))
                if step.name in self._gates:
                    args = _gated(step.function, args, self._gates[step.name])
                values[step.name] = step.function(*args, **kwargs)
                if observe is not None:
                    observe(f"{step.name} at {step.location}", values[step.name])
                for name in step.over:
                    del values[name]
        finally:
            running_at.set(outer)
        return self._filled(script.output, values, "")

    def _filled(self, template: Any, values: Mapping[str, Any], name: str) -> Any:
        if isinstance(template, _Value):
            return values[template.name]
        if isinstance(template, _Size):
            return self.__dict__[name + _SIZES][template.index]
        if isinstance(template, _Float):
            return self.__dict__[template.name]
        if isinstance(template, (list, tuple)):
            items = [self._filled(item, values, name) for item in template]
            return tuple(items) if isinstance(template, tuple) else items
        if isinstance(template, dict):
            return {key: self._filled(item, values, name) for key, item in template.items()}
        return template


class Program(Subprogram, GraphModule):
    """An exported program as a module: its parameters and buffers under their names, its sizes as attributes.

    The checks of the program on its own values are skipped. Train and eval mode are the same: the mode was fixed when
    the program was exported.
    """

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        for kind in program.graph_signature.input_specs:
            if kind.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN):
                raise TraceError(
                    f"The exported program takes {kind.arg}, which is not a tensor; niwaki cannot follow it."
                )
        for output in program.graph_signature.output_specs:
            if output.kind not in _OUTPUTS:
                raise TraceError(
                    f"The exported program has an output of the kind {output.kind.name}. niwaki cuts forward passes; "
                    "export the model without its loss."
                )
        _adopt(self, program)
        self._read(program, program.graph_module, program.graph)
        specs = program.graph_signature.input_specs
        names = [name for spec, name in zip(specs, self._script.inputs, strict=True) if spec.kind is _USER_INPUT]
        self.__dict__["__signature__"] = Signature([Parameter(name, _NAMED) for name in names])

    @property
    def source(self) -> ExportedProgram:
        """The exported program that it was made from, with the dense sizes and tensors."""
        return self._script.program

    def why_not_taken(self, operand: JoinOperand) -> str | None:
        return why_not_taken(self._script.memory, self._script.nodes, operand)

    def take(self, operands: Collection[JoinOperand], tensors: Collection[str]) -> None:
        """As `GraphModule.take`; the sizes of calls that stay are what they are."""
        source, program = self.source, without(self.source, operands, tensors)
        for name in (source.state_dict.keys() | source.constants) - (program.state_dict.keys() | program.constants):
            *path, last = name.split(".")
            delattr(self.get_submodule(".".join(path)), last)
        self._read(program, program.graph_module, program.graph)

    def put_gates(self, operands: Collection[JoinOperand], factor: Factor) -> Callable[[], None]:
        for operand in operands:
            gates = self._gates.setdefault(operand.node, {})
            gates[operand.position] = (*gates.get(operand.position, ()), factor)

        def ungate() -> None:
            for operand in operands:
                gates = self._gates[operand.node]
                gates[operand.position] = tuple(one for one in gates[operand.position] if one is not factor)

        return ungate

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The outputs of the program."""
        signature = self.source.graph_signature
        given = list(self._given(signature.input_specs, args, kwargs))
        results = self.run(given)
        inputs = dict(zip(self._script.inputs, given, strict=True))
        outputs = []
        for spec, result in zip(signature.output_specs, results, strict=True):
            if spec.kind is OutputKind.USER_OUTPUT:
                outputs.append(result)
                continue
            assert spec.target is not None
            user = spec.kind is OutputKind.USER_INPUT_MUTATION
            target = inputs[spec.target] if user else _tensor(self, spec.target)
            with torch.no_grad():
                target.copy_(result)
        assert self.source.call_spec.out_spec is not None
        return tree_unflatten(outputs, self.source.call_spec.out_spec)

    def _given(self, specs: Sequence[InputSpec], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        rest = iter(_flattened(args, kwargs, self.source.call_spec.in_spec))
        for spec in specs:
            if spec.kind is InputKind.USER_INPUT:
                yield next(rest)
            else:
                assert spec.target is not None
                yield _tensor(self, spec.target)


def _gated(
    function: Callable[..., Any], args: tuple[Any, ...], gates: Mapping[int, tuple[Factor, ...]]
) -> tuple[Any, ...]:
    """The arguments with what ``gates`` make of those at some positions; in the same memory if the function writes its
    result there."""
    if isinstance(args[0], (list, tuple)):
        return (list(_gated(function, tuple(args[0]), gates)), *args[1:])
    found = list(args)
    for place, factors in gates.items():
        for factor in factors:
            writes = function is aten.add_.Tensor and place == 0
            found[place] = found[place].copy_(factor(found[place].clone())) if writes else factor(found[place])
    return tuple(found)


_USER_INPUT, _NAMED = InputKind.USER_INPUT, Parameter.POSITIONAL_OR_KEYWORD
_OUTPUTS = (
    OutputKind.USER_OUTPUT,
    OutputKind.BUFFER_MUTATION,
    OutputKind.PARAMETER_MUTATION,
    OutputKind.USER_INPUT_MUTATION,
)


def _flattened(args: tuple[Any, ...], kwargs: dict[str, Any], expected: TreeSpec | None) -> list[Any]:
    assert expected is not None
    order = expected.children()[1].context or []
    if set(order) == set(kwargs):
        kwargs = {name: kwargs[name] for name in order}
    flat, spec = tree_flatten((args, kwargs))
    if spec != expected:
        raise TypeError(
            f"the exported program takes inputs of the structure {expected}, and was given the structure {spec}"
        )
    return flat


def _adopt(module: nn.Module, program: ExportedProgram) -> None:
    """Register the program's tensors under their names; tied ones are one object."""
    persistent = set(program.state_dict)
    known: dict[object, torch.Tensor] = {}
    for name, tensor in {**program.state_dict, **program.constants}.items():
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.numel():
            storage = tensor.untyped_storage()._cdata
            tensor = known.setdefault((storage, tensor.storage_offset(), tensor.shape, tensor.stride()), tensor)
        *path, last = name.split(".")
        owner = module
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner.get_submodule(part)
        if isinstance(tensor, nn.Parameter):
            owner.register_parameter(last, tensor)
        else:
            owner.register_buffer(last, tensor, persistent=name in persistent)


def _tensor(module: nn.Module, name: str) -> torch.Tensor:
    *path, last = name.split(".")
    tensor = getattr(module.get_submodule(".".join(path)), last)
    assert isinstance(tensor, torch.Tensor)
    return tensor


def needed(graph: fx.Graph) -> list[fx.Node]:
    """The nodes except checks, and except arithmetic on sizes that only checks use."""
    live: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        computes = not _on_sizes(node) and node.target not in CHECKS
        if computes or not live.isdisjoint(node.users):
            live.add(node)
    return [node for node in graph.nodes if node in live]


def _on_sizes(node: fx.Node) -> bool:
    return node.op == "call_function" and isinstance(
        node.meta.get("val"), (torch.SymInt, torch.SymBool, torch.SymFloat, int, bool)
    )


def location_of(node: fx.Node) -> Location:
    """The line of the user's source that a node came from, if the program has it."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    module = str(stack[-1][0]).split("@")[0] if stack else ""
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    for file, line in reversed(lines):
        if not file.startswith((TORCH, "<")):
            return Location(file, int(line), module)
    return Location(f"node {node.name!r} of the exported program", 0, module)


def _template(argument: Any) -> Any:
    if isinstance(argument, fx.Node):
        return _Value(argument.name)
    if isinstance(argument, (list, tuple)):
        items = [_template(item) for item in argument]
        return tuple(items) if isinstance(argument, tuple) else items
    if isinstance(argument, dict):
        return {name: _template(item) for name, item in argument.items()}
    return argument
