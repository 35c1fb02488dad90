"""Turn the arguments of public functions (a model, an exported program, or a model to export) into a module."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy

from niwaki.core.names import named_buffers, named_parameters
from niwaki.errors import TraceError
from niwaki.program.convert import exported
from niwaki.program.module import Program
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import example_calls


def calls_of(model: nn.Module | ExportedProgram, example_inputs: Any) -> tuple[ExampleCall, ...]:
    """The example calls of the user; without any, the one that a program was exported with."""
    if example_inputs is not None:
        return example_calls(example_inputs)
    program = model.source if isinstance(model, Program) else model
    if isinstance(program, ExportedProgram) and program.example_inputs is not None:
        args, kwargs = program.example_inputs
        return ((tuple(args), dict(kwargs)),)
    raise TraceError(
        "There are no example inputs, and only an exported program that was saved with its own can do without. Pass "
        "inputs that the model accepts: a tensor or tuple for positional arguments, a dict for keywords."
    )


def program_of(model: nn.Module | ExportedProgram, call: ExampleCall | None, as_graph: bool) -> nn.Module:
    """The module to analyse or cut: an exported program as `Program`, and ``model`` exported to one if ``as_graph``."""
    if isinstance(model, ExportedProgram):
        return Program(model)
    _check(model)
    if isinstance(model, Program) or not as_graph:
        return model
    assert call is not None
    try:
        return Program(exported(model, call))
    except TraceError as cause:
        raise TraceError(
            f"{cause} The graph-level cut needs an exported program: cut the model itself, without as_graph, or export "
            "it yourself and pass the ExportedProgram."
        ) from cause


def _check(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise TraceError(
            f"The model is a {type(model).__qualname__}. Pass a torch.nn.Module or a torch.export.ExportedProgram; a "
            "function becomes a module as the forward method of one that holds its parameters."
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            f"The model is TorchScript ({type(model).__qualname__}), which niwaki does not support: its sizes are "
            "compiled into it. Pass the module that it was scripted or traced from."
        )
    for name, tensor in (*named_parameters(model), *named_buffers(model)):
        if is_lazy(tensor):
            raise TraceError(
                f"The tensor {name!r} of the model has no shape yet: its module is lazy and takes its sizes from the "
                "first input. Run the model once, and make the optimizer after that."
            )
