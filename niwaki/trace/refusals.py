"""Error sentences for inputs that a model does not run on: the fault, and what to pass instead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from niwaki.core.names import named_parameters
from niwaki.errors import TraceError, first_line
from niwaki.trace.fake import is_fake
from niwaki.trace.structures import ExampleCall

_TAKES = "pass inputs that it accepts (a tensor or tuple for positional arguments, a dict for keywords)"


def check_inputs(example_inputs: Any) -> None:
    """Raise `TraceError` for inputs that no model takes: a loader or an iterator of batches."""
    if isinstance(example_inputs, (DataLoader, Iterator)):
        kind = type(example_inputs).__qualname__
        batch = "next(iter(loader))" if isinstance(example_inputs, DataLoader) else "next(batches)"
        raise TraceError(
            f"example_inputs is a {kind}, which yields batches and is not one. Pass the inputs of one batch without "
            f"its labels, such as {batch}[0]."
        )


def does_not_run(model: torch.nn.Module, calls: Sequence[ExampleCall], call: ExampleCall, error: Exception) -> str:
    """The sentence for a ``model`` that failed on one ``call`` of ``calls`` with ``error``, and the likely reason."""
    said = first_line(error).replace("TrackedInt", "int").removesuffix(", but expected one of:")
    what = f"{type(error).__qualname__}: {said}" if said else type(error).__qualname__
    return f"The model does not run on the example inputs: {what}. {_likely(model, calls, call, error)}"


def _likely(model: torch.nn.Module, calls: Sequence[ExampleCall], call: ExampleCall, error: Exception) -> str:
    args, kwargs = call
    named = {f"argument {number}": value for number, value in enumerate(args)} | kwargs
    arrays = [name for name, value in named.items() if isinstance(value, (np.ndarray, np.generic))]
    if arrays:
        return f"Its {arrays[0]} is a NumPy array: pass a tensor, torch.from_numpy(array)."
    offloaded = [name for name, parameter in named_parameters(model) if parameter.is_meta or is_fake(parameter)]
    if offloaded and any("forward" in vars(module) for module in model.modules()):
        return (
            f"Its weights are offloaded: {len(offloaded)} parameters, first {offloaded[0]!r}, are on the meta device "
            "between calls, and a hook around forward brings them (Accelerate's device_map, cpu_offload or "
            "disk_offload). Call accelerate.hooks.remove_hook_from_submodules(model) and load the weights, "
            "or build the model without offloading."
        )
    if len(args) == 2 and isinstance(error, TypeError) and "positional argument" in str(error):
        return (
            "niwaki runs it as model(*inputs), and example_inputs is a tuple of two. Does it hold labels? Pass the "
            "inputs alone."
        )
    if len(calls) > 1:
        number = next(index for index, one in enumerate(calls) if one is call)
        return (
            f"example_inputs is a list, which means {len(calls)} calls, and this is number {number}. A batch of a "
            "loader is such a list, [inputs, labels]: pass its inputs alone, batch[0]."
        )
    return f"niwaki runs it once as model(*inputs) in eval mode; {_TAKES}."
