"""Export a network to `torch.export` and ONNX, and check that the export computes the same."""

from __future__ import annotations

import inspect
import os
import shutil
import uuid
import warnings
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves

from niwaki.errors import ExportError, TraceError, first_line
from niwaki.io.atomic import flush_directory, flush_file
from niwaki.program.convert import exported
from niwaki.trace.eager import eagerly
from niwaki.trace.model_state import preserved
from niwaki.trace.structures import ExampleCall, input_names
from niwaki.trace.tracer import example_calls

_CLOSE = 1e-4  # relative to the largest value of an output


@eagerly()
def export(
    small: nn.Module,
    example_inputs: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    dynamic: Mapping[str, Collection[int]] | None = None,
) -> ExportedProgram:
    """Export a network in eval mode as a program and, with ``path``, as an ONNX file.

    Both are run and compared with the network: for the example inputs and, if sizes are dynamic, for inputs of twice
    these sizes. The network is not changed.

    Args:
        small: any network: one that `niwaki.cut` returned, or another.
        example_inputs: one call: a tensor or tuple is positional, a dict is keywords.
        path: where to write the ONNX file, ``*.onnx``; the weights of networks over 2 GB are written beside it. Needs
            ``pip install onnx onnxruntime onnxscript``.
        dynamic: the dimensions of dynamic size, by the name of the parameter of ``forward``: ``{"x": (0,)}`` for the
            batch. The example must have 2 or more there.

    Returns: The program; ``program.module()`` runs, and ``niwaki.save(small, directory, program=program)`` saves it.

    Raises:
        ExportError: the network cannot be exported, a dynamic size becomes fixed, or an output differs by more than
            1e-4 of its largest value; the message names it. Nothing is written.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> program = niwaki.export(net, torch.randn(3, 4), dynamic={"input": (0,)})
        >>> program.module()(torch.randn(7, 4)).shape
        torch.Size([7, 2])
    """
    calls = example_calls(example_inputs)
    if len(calls) != 1:
        raise ExportError(
            f"A program is exported from one call, and example_inputs has {len(calls)}. Give one of them."
        )
    if path is not None and Path(path).suffix != ".onnx":
        raise ExportError(f"{str(path)!r} does not end in .onnx, the only file type that niwaki.export writes.")
    (call,) = calls
    free = dict(dynamic or {})
    trials = [call, _doubled(small, call, free)] if free else [call]
    try:
        program = exported(small, call, _shapes(small, call, free) if free else None)
    except TraceError as cause:
        raise ExportError(f"The network cannot be exported. {cause}") from cause
    expected = [_outputs(small, trial) for trial in trials]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        run = program.module()
    for trial, wanted in zip(trials, expected, strict=True):
        _compare("The exported program", lambda args, kwargs: run(*args, **kwargs), trial, wanted)
    if path is not None:
        _write_onnx(program, Path(path), trials, expected, _renamed(small, program, call))
    return program


def _renamed(small: nn.Module, program: ExportedProgram, call: ExampleCall) -> dict[str, str]:
    """The names of inputs that ``small``, which is a program itself, has and ``program`` has lost, by those there."""
    names = input_names(small, *call)
    given = zip(program.graph_signature.user_inputs, tree_leaves(call), strict=True)
    found = {str(old): names.get(id(value), "") for old, value in given}
    return {old: new for old, new in found.items() if new.isidentifier() and new not in found}


def _bound(small: nn.Module, call: ExampleCall) -> dict[str, Any]:
    """The arguments of a call by the names of the parameters of ``forward``."""
    return dict(inspect.signature(small.forward).bind(*call[0], **call[1]).arguments)


def _shapes(small: nn.Module, call: ExampleCall, free: Mapping[str, Collection[int]]) -> dict[str, Any]:
    """The ``dynamic_shapes`` of every argument, as `torch.export` takes them."""
    return {name: dict.fromkeys(free[name], Dim.DYNAMIC) if name in free else None for name in _bound(small, call)}


def _doubled(small: nn.Module, call: ExampleCall, free: Mapping[str, Collection[int]]) -> ExampleCall:
    """The same call with twice the size in every dynamic dimension, so that equal sizes remain equal, and multiples
    multiples."""
    given = _bound(small, call)
    larger: dict[int, Tensor] = {}
    for name, dims in free.items():
        value = given.get(name)
        if not isinstance(value, Tensor):
            raise ExportError(
                f"dynamic names {name!r}, which is not a tensor among the example inputs ({', '.join(given)}). Name "
                "the parameters of forward as its definition does."
            )
        made = value
        for dim in dims:
            if not 0 <= dim < value.ndim or value.shape[dim] < 2:
                raise ExportError(
                    f"Dimension {dim} of {name!r} of shape {list(value.shape)} cannot be dynamic: torch.export takes a "
                    "size of 1 for a constant. Give an example with 2 or more there."
                )
            made = torch.cat([made, made], dim)
        larger[id(value)] = made
    args, kwargs = call
    return (
        tuple(larger.get(id(value), value) for value in args),
        {name: larger.get(id(value), value) for name, value in kwargs.items()},
    )


def _outputs(small: nn.Module, call: ExampleCall) -> dict[str, Tensor]:
    """The outputs of the network in eval mode, by the path of each tensor."""
    args, kwargs = call
    with preserved(small), torch.no_grad():
        for module in small.modules():
            module.training = False
        try:
            return _named(small(*args, **kwargs))
        except (RuntimeError, ValueError, TypeError, IndexError) as cause:
            raise ExportError(
                "The network does not run on inputs of twice the size in its dynamic dimensions, which would show that "
                f"they are free: {first_line(cause)}. Give smaller example inputs."
            ) from cause


def _named(result: Any) -> dict[str, Tensor]:
    leaves, _ = tree_flatten_with_path(result)
    return {keystr(path) or "output": value for path, value in leaves if isinstance(value, Tensor)}


def _compare(what: str, run: Callable[[Any, Any], Any], call: ExampleCall, expected: Mapping[str, Tensor]) -> None:
    """Raise `ExportError` that names the first output that differs."""
    sizes = ", ".join(str(list(leaf.shape)) for leaf in tree_leaves(call) if isinstance(leaf, Tensor))
    try:
        with torch.no_grad():
            found = [value for value in tree_leaves(run(*call)) if isinstance(value, Tensor)]
    except Exception as cause:
        raise ExportError(
            f"{what} fails on inputs of the sizes {sizes}: {type(cause).__qualname__}: {first_line(cause)}"
        ) from cause
    if len(found) != len(expected):
        raise ExportError(f"{what} has {len(found)} outputs, and the network {len(expected)}.")
    for (name, wanted), value in zip(expected.items(), found, strict=True):
        if value.shape != wanted.shape:
            raise ExportError(
                f"{what} gives {name!r} the shape {list(value.shape)} instead of {list(wanted.shape)} for inputs of "
                f"the sizes {sizes}."
            )
        if wanted.numel() == 0:
            continue
        far = (value.double() - wanted.double()).abs().max() / wanted.double().abs().max().clamp_min(1e-30)
        if not float(far) <= _CLOSE:
            raise ExportError(
                f"{what} computes another {name!r} for inputs of the sizes {sizes}: it differs by {float(far):.1e} of "
                f"its largest value, and {_CLOSE:.0e} is allowed."
            )


def _write_onnx(
    program: ExportedProgram,
    path: Path,
    trials: list[ExampleCall],
    expected: list[dict[str, Tensor]],
    renamed: Mapping[str, str],
) -> None:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  what torch's exporter is written in
    except ImportError as cause:
        raise ExportError(
            f"Writing ONNX needs the package {cause.name}: pip install onnx onnxruntime onnxscript."
        ) from cause
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = torch.onnx.export(program, dynamo=True, verbose=False)
        assert made is not None
        for value in made.model.graph.inputs:
            value.name = renamed.get(str(value.name), value.name)
        made.save(beside / path.name)
        session = onnxruntime.InferenceSession(str(beside / path.name), providers=["CPUExecutionProvider"])
        for trial, wanted in zip(trials, expected, strict=True):
            _compare("The ONNX file", lambda *call: _run_onnx(session, program, call, renamed), trial, wanted)
        files = sorted(beside.iterdir(), key=lambda file: file.name == path.name)  # the weights first
        for file in files:
            flush_file(file)
        for file in files:
            os.replace(file, path.parent / file.name)
        flush_directory(path.parent)
    except ExportError:
        raise
    except Exception as cause:
        raise ExportError(
            f"The network cannot be written to {str(path)!r} as ONNX: {type(cause).__qualname__}: {first_line(cause)}"
        ) from cause
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _run_onnx(session: Any, program: ExportedProgram, call: ExampleCall, renamed: Mapping[str, str]) -> list[Tensor]:
    names = [renamed.get(str(name), str(name)) for name in program.graph_signature.user_inputs]
    given = dict(zip(names, tree_leaves(call), strict=True))
    wanted = {item.name for item in session.get_inputs()}
    feed = {name: value.detach().cpu().numpy() for name, value in given.items() if name in wanted}
    return [torch.from_numpy(value) for value in session.run(None, feed)]
