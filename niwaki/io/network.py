"""Save a cut network, and load it by cutting a fresh dense one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TypeVar, overload

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.optim import Optimizer

from niwaki.core.names import state_of_model
from niwaki.core.plan import Plan
from niwaki.errors import FileFormatError, PlanError
from niwaki.io.format import DIRECTORY_FORMAT
from niwaki.io.optimizer import optimizer_part
from niwaki.io.program import constants_of, fill_program, program_parts
from niwaki.io.reading import file_of, read_description, read_tensors
from niwaki.io.state import contiguous, fill, materialised, outside_state, state_of
from niwaki.io.writing import Part, tensors_part, write_directory
from niwaki.surgery.cut import cut_module, cut_program
from niwaki.surgery.history import check_plan, plan_of

Network = TypeVar("Network", bound=nn.Module)


def save(
    small: nn.Module | ExportedProgram,
    directory: str | os.PathLike[str],
    *,
    plan: Plan | None = None,
    optimizer: Optimizer | None = None,
    program: ExportedProgram | None = None,
) -> None:
    """Write a cut network to ``directory`` as ``model.safetensors`` and ``plan.json``.

    No argument is changed. An existing directory keeps its other files; after a kill at any moment it holds the earlier
    save or the new one, never a mixture. No file contains pickled objects.

    Args:
        small: the network that `niwaki.cut` returned, trained further or not, on any device and of any dtype.
        directory: created, with its parents, if it does not exist.
        plan: needed only if something else than `niwaki.cut`, `niwaki.shrink` or a copy made ``small``, such as a
            constructor with the small sizes.
        optimizer: an optimizer of the parameters of ``small``, whose state goes to ``optimizer.safetensors``;
            `niwaki.load_optimizer` reads it.
        program: ``torch.export.export(small, ...)``, which goes to ``program.json`` and ``program.safetensors``;
            `niwaki.load_program` runs it without the code of the model. If ``small`` is an exported program, that one
            is saved.

    Raises:
        FileFormatError: ``small`` has no plan, holds state that is not a tensor, ``optimizer`` or ``program`` is of
            another network or cannot be saved, or ``directory`` is a file or cannot be written to.
        PlanError: ``plan`` is not a plan.

    Example:
        >>> import tempfile, torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     niwaki.save(niwaki.cut(net, plan), directory)
        ...     sorted(os.listdir(directory))
        ['model.safetensors', 'plan.json']
    """
    plan = plan_of(small) if plan is None else plan
    if plan is None:
        raise FileFormatError(
            "niwaki.save was given a network without a plan: niwaki.cut did not make it, nor the network that it is a "
            "copy of. Pass the plan it was cut with as `plan=`."
        )
    check_plan(plan)
    if isinstance(small, ExportedProgram):
        if optimizer is not None or program is not None:
            raise FileFormatError(
                "niwaki.save was given an exported program as the network, and beside it "
                f"{'an optimizer' if program is None else 'another program'}, which belongs to a module. Save the "
                "module, with the program as `program=`."
            )
        state = state_of(small.state_dict, constants_of(small))
        program = small
    else:
        state = state_of(state_of_model(small), outside_state(small))
    tensors = contiguous(state.tensors)
    parts: dict[str, Part] = {"weights": tensors_part(tensors, tied=state.tied, buffers=state.buffers)}
    if optimizer is not None:
        assert isinstance(small, nn.Module)
        parts["optimizer"] = optimizer_part(optimizer, small)
    if program is not None:
        parts |= program_parts(program, state, is_network=program is small)
    write_directory(Path(directory), {**json.loads(plan.to_json()), "directory": DIRECTORY_FORMAT}, parts)


@overload
def load(
    fresh_dense_model: Network, directory: str | os.PathLike[str], *, device: str | torch.device | None = ...
) -> Network: ...
@overload
def load(
    fresh_dense_model: ExportedProgram, directory: str | os.PathLike[str], *, device: str | torch.device | None = ...
) -> ExportedProgram: ...
def load(
    fresh_dense_model: nn.Module | ExportedProgram,
    directory: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
) -> nn.Module | ExportedProgram:
    """Cut a fresh dense network by the saved plan and give it the saved tensors.

    Args:
        fresh_dense_model: the network as its constructor makes it, which is not changed. It may be on the meta device:
            then the dense weights are never in memory. For plans of ``niwaki.search_space(..., as_graph=True)``, the
            dense exported program.
        directory: the directory that `niwaki.save` wrote.
        device: the device of the small network; default: that of the fresh one, or the CPU for one on the meta device.
            A program keeps the device of its export.

    Returns:
        The small network: tensors of the saved dtype, in the mode of ``fresh_dense_model``.

    Raises:
        FileFormatError: a file is missing, damaged, from a newer niwaki, or for another architecture; the message names
            the first difference.

    Example:
        >>> import tempfile, torch, niwaki
        >>> def network():
        ...     return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> net = network()
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     niwaki.save(niwaki.cut(net, plan), directory)
        ...     niwaki.load(network(), directory)[0]
        Linear(in_features=4, out_features=4, bias=True)
    """
    source = Path(directory)
    plan, data = read_description(source)
    path = file_of(source, data, "weights")
    tensors = read_tensors(path, data["weights"])
    try:
        if isinstance(fresh_dense_model, ExportedProgram):
            program = cut_program(fresh_dense_model, plan)
            fill_program(program, tensors, data["weights"], path)
            return program
        plan.check_fits(fresh_dense_model)
        small = cut_module(fresh_dense_model, plan)
    except PlanError as cause:
        raise FileFormatError(f"{str(source)!r} cannot be loaded into this model. {cause}") from cause
    filled = frozenset(tensors) | frozenset(data["weights"].get("tied", {}))
    whole = materialised(small, filled, torch.device(device or "cpu"))
    fill(whole, tensors, data["weights"], path)
    return whole if device is None else whole.to(device)
