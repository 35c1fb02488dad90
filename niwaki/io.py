"""Saving a cut network and loading it into a fresh dense one. No pickle anywhere.

A saved network is a directory of two files:

* ``model.safetensors``: every entry of the small network's ``state_dict``, tied ones once, and the buffers that it
  keeps out of its ``state_dict``;
* ``plan.json``: the plan (`Plan.from_json` reads this very file), and beside its keys
  ``weights``: ``{"sha256": of model.safetensors, "tensors": {name: crc32}, "tied": {name: name it shares}, "buffers":
  [names of those kept out of the state_dict]}``, where ``buffers`` may be missing, and
  ``checksum``: the SHA-256 of everything else in the file, as compact JSON with sorted keys.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.export import ExportedProgram

from niwaki.core.plan import Plan
from niwaki.errors import FileFormatError, PlanError
from niwaki.files import flush_directory, flush_file, sha256_of, write_atomically
from niwaki.surgery.cut import cut
from niwaki.surgery.plans import plan_of

WEIGHTS_FILE = "model.safetensors"
PLAN_FILE = "plan.json"


def save(small: nn.Module, directory: str | os.PathLike[str], *, plan: Plan | None = None) -> None:
    """Write a cut network to ``directory`` as ``model.safetensors`` and ``plan.json``.

    The network itself is only read. A directory that is there already keeps its other files; a kill at any moment
    leaves in it what was saved before, or all that is saved now.

    Args:
        small: what `niwaki.cut` returned, trained on or not, on any device and of any dtype.
        directory: made, with its parents, if it is not there.
        plan: needed only if ``small`` is a copy of what `niwaki.cut` returned, which does not know its plan.

    Raises:
        FileFormatError: ``small`` has no plan, holds state that is not a tensor, or ``directory`` is a file or cannot
            be written to.

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
    if isinstance(small, ExportedProgram):
        raise FileFormatError(
            "niwaki.save was given an exported program, which contains its code. Save it with torch.export.save and "
            "the plan, if you need it, as plan.to_json()."
        )
    plan = plan or plan_of(small)
    if plan is None:
        raise FileFormatError(
            "niwaki.save was given a network without a plan: it was not made by niwaki.cut, or is a copy of one that "
            "was. Pass the plan it was cut with as `plan=`."
        )
    target = Path(directory)
    if target.exists() and not target.is_dir():
        raise FileFormatError(f"Cannot save to {str(target)!r}: it is a file. Name a directory.")
    state = _state_of(small)
    try:
        _write(target, plan, state)
    except OSError as cause:
        raise FileFormatError(
            f"Cannot save to {str(target)!r}: {cause.strerror or cause}. Name a directory that can be written to."
        ) from cause


def load(fresh_dense_model: nn.Module, directory: str | os.PathLike[str]) -> nn.Module:
    """Cut a fresh dense network as the saved one was and give it the saved tensors.

    Args:
        fresh_dense_model: the network as its constructor makes it; it stays as it is.
        directory: what `niwaki.save` wrote.

    Returns:
        The small network: tensors of the saved dtype on the device of ``fresh_dense_model``, in its mode.

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
    plan, weights = _read_plan(source)
    path = _weights_path(source, weights["sha256"])
    tensors = _read_tensors(path, weights)
    try:
        plan.check_fits(fresh_dense_model)
        small = cut(fresh_dense_model, plan)
    except PlanError as cause:
        raise FileFormatError(f"{str(source)!r} cannot be loaded into this model. {cause}") from cause
    outside = set(weights.get("buffers", ())) & tensors.keys() - small.state_dict().keys()
    buffers = {name: tensors.pop(name) for name in sorted(outside)}
    _fill(small, tensors, weights["tied"], path)
    for name, saved in buffers.items():
        _fill_buffer(small, name, saved, path)
    return small


def read_plan(directory: str | os.PathLike[str]) -> Plan:
    """The plan of a saved network, checked against its checksum.

    Raises:
        FileFormatError: there is no plan, or it is damaged or from a newer niwaki.
    """
    return _read_plan(Path(directory))[0]


@dataclass(frozen=True, slots=True)
class _State:
    """The tensors of a module; the names that share the very tensor of an earlier name; and which of the tensors are
    buffers that are not in the ``state_dict``."""

    tensors: dict[str, Tensor]
    tied: dict[str, str]
    buffers: list[str]


def _state_of(module: nn.Module) -> _State:
    tensors: dict[str, Tensor] = {}
    tied: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor):
            raise FileFormatError(
                f"Cannot save {name!r}: the module keeps a {type(value).__qualname__} in its state, and safetensors "
                "files hold tensors only. Keep it as a buffer, or out of the state_dict."
            )
        _check_has_values(name, value)
        if (key := _identity(value)) is not None and key in seen:
            tied[name] = seen[key]
            continue
        if key is not None:
            seen[key] = name
        tensors[name] = value.detach()
    buffers = _outside_state(module)
    for name, value in buffers.items():
        _check_has_values(name, value)
        tensors[name] = value.detach()
    return _State(tensors, tied, sorted(buffers))


def _outside_state(module: nn.Module) -> dict[str, Tensor]:
    """The non-persistent buffers: no part of the ``state_dict``, yet the network may compute with what they hold."""
    state = module.state_dict()
    return {name: value for name, value in module.named_buffers(remove_duplicate=False) if name not in state}


def _check_has_values(name: str, value: Tensor) -> None:
    if value.is_meta:
        raise FileFormatError(f"Cannot save {name!r}: it is on the meta device and has no values.")
    if value.layout != torch.strided:
        raise FileFormatError(f"Cannot save {name!r}: it is sparse, and safetensors files hold dense tensors only.")


def _identity(tensor: Tensor) -> tuple[Any, ...] | None:
    """What two names of one tensor have in common; None for a tensor without elements."""
    if tensor.numel() == 0:
        return None
    return tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride()


def _write(target: Path, plan: Plan, state: _State) -> None:
    """Write into a directory that is there, or make it with all that is in it at once."""
    if target.is_dir():
        _write_into(target, plan, state)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{target.name}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        beside.mkdir()
        _write_into(beside, plan, state)
        os.rename(beside, target)
    except BaseException:  # also on Ctrl-C: nothing half written may stay behind
        shutil.rmtree(beside, ignore_errors=True)
        raise
    flush_directory(target.parent)


def _write_into(directory: Path, plan: Plan, state: _State) -> None:
    """Write both files. ``plan.json`` is the commit: until it is replaced, the old pair is what `load` sees; after it,
    the new weights are found under their staged name until they have taken the place of the old ones."""
    _remove_leftovers(directory)
    # Copies: safetensors refuses tensors that share or only partly use a storage, and wants them contiguous.
    copies = {
        name: tensor.to("cpu", copy=True, memory_format=torch.contiguous_format)
        for name, tensor in state.tensors.items()
    }
    staging = directory / f".model-{uuid.uuid4().hex[:8]}.safetensors.tmp"
    try:
        save_file(copies, staging, metadata={"format": "pt"})
        flush_file(staging)
        digest = sha256_of(staging)
        staged = directory / _staged_name(digest)
        os.replace(staging, staged)
    except SafetensorError as cause:
        staging.unlink(missing_ok=True)
        raise FileFormatError(f"safetensors cannot hold this network's tensors: {cause}.") from cause
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    data = json.loads(plan.to_json())
    data["weights"] = {
        "sha256": digest,
        "tensors": {name: _crc32(tensor) for name, tensor in copies.items()},
        "tied": state.tied,
        "buffers": state.buffers,
    }
    data["checksum"] = _checksum(data)
    write_atomically(directory / PLAN_FILE, json.dumps(data, indent=1).encode())
    staged.chmod((directory / PLAN_FILE).stat().st_mode)  # safetensors writes files for their owner alone
    os.replace(staged, directory / WEIGHTS_FILE)
    flush_directory(directory)
    _remove_leftovers(directory)


def _remove_leftovers(directory: Path) -> None:
    """Remove what killed saves left: temporary files, and staged weights that no plan refers to."""
    for left in (*directory.glob(".model-*.safetensors*"), *directory.glob(f".{PLAN_FILE}.*.tmp")):
        if not _is_committed(directory, left):
            left.unlink(missing_ok=True)


def _is_committed(directory: Path, staged: Path) -> bool:
    """Whether a plan refers to a staged weights file, because a save was killed between its last two steps."""
    try:
        digest = json.loads((directory / PLAN_FILE).read_bytes())["weights"]["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return staged.name == _staged_name(str(digest))


def _staged_name(digest: str) -> str:
    return f".model-{digest[:16]}.safetensors"


def _checksum(data: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in data.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _crc32(tensor: Tensor) -> int:
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())


def _read_plan(directory: Path) -> tuple[Plan, dict[str, Any]]:
    """The plan and the description of the weights from ``plan.json``."""
    path = directory / PLAN_FILE
    if not directory.exists():
        raise FileFormatError(f"There is no directory {str(directory)!r} to load from.")
    if not directory.is_dir():
        raise FileFormatError(f"Cannot load from {str(directory)!r}: it is a file. Name the directory that was saved.")
    if not path.is_file():
        raise FileFormatError(f"{str(directory)!r} has no {PLAN_FILE}: it is not a network that niwaki.save wrote.")
    try:
        text = path.read_bytes().decode()
        data = json.loads(text)
        plan = Plan.from_json(text)
    except ValueError as cause:
        raise FileFormatError(f"{str(path)!r} is damaged: it is not JSON any more ({cause}).") from cause
    except PlanError as cause:
        raise FileFormatError(f"{str(path)!r} cannot be read. {cause}") from cause
    if "weights" not in data or "checksum" not in data:
        raise FileFormatError(
            f"{str(path)!r} holds a plan only, without the description of its weights: it is not a network that "
            "niwaki.save wrote."
        )
    if data["checksum"] != _checksum(data):
        raise FileFormatError(f"{str(path)!r} is damaged: its content contradicts its checksum. Restore the file.")
    return plan, data["weights"]


def _weights_path(directory: Path, digest: str) -> Path:
    """The weights file that belongs to the plan."""
    path, staged = directory / WEIGHTS_FILE, directory / _staged_name(digest)
    if staged.is_file() and not (path.is_file() and sha256_of(path) == digest):
        return staged  # the save was killed between its last two steps
    if not path.is_file():
        raise FileFormatError(f"{str(directory)!r} has a {PLAN_FILE} but no {WEIGHTS_FILE}. Restore the file.")
    return path


def _read_tensors(path: Path, weights: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of the file, after its checksum; the error names the first tensor that differs."""
    planned: Mapping[str, int] = weights["tensors"]
    intact = sha256_of(path) == weights["sha256"]
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, OSError) as cause:
        raise FileFormatError(f"{str(path)!r} is damaged: safetensors cannot read it ({cause}).") from cause
    for name in planned:
        if name not in tensors:
            raise FileFormatError(f"{str(path)!r} lacks the tensor {name!r}. Restore the file that was saved.")
    for name in tensors:
        if name not in planned:
            raise FileFormatError(f"{str(path)!r} has a tensor {name!r} that its {PLAN_FILE} does not know.")
    if intact:
        return tensors
    for name, crc in planned.items():
        if _crc32(tensors[name]) != crc:
            raise FileFormatError(
                f"{str(path)!r} is damaged: the values of {name!r} contradict their checksum. Restore the file."
            )
    raise FileFormatError(
        f"{str(path)!r} contradicts its checksum in {PLAN_FILE}: its header was changed, though all values are intact. "
        "Restore the file."
    )


def _fill(small: nn.Module, tensors: Mapping[str, Tensor], tied: Mapping[str, str], path: Path) -> None:
    """Copy the saved tensors into a cut network whose names, shapes and ties must be the saved ones."""
    state = small.state_dict(keep_vars=True)
    for name in (*tensors, *tied):
        if name not in state:
            raise FileFormatError(f"{str(path)!r} holds {name!r}, which this model does not have.")
    for name, value in state.items():
        if name not in tensors and name not in tied:
            raise FileFormatError(f"{str(path)!r} does not hold {name!r}, which this model has.")
        _check_fillable(name, value)
        saved = tensors[tied.get(name, name)]
        if value.shape != saved.shape:
            raise FileFormatError(
                f"{str(path)!r} holds {name!r} of shape {list(saved.shape)}, but this model, once cut, has "
                f"{list(value.shape)}."
            )
    _check_ties(state, tied, path)
    for name, saved in tensors.items():
        # The dtype is part of what was saved; parameters keep their identity, and with it their ties.
        value = state[name]
        value.data = value.data.to(saved.dtype)
        with torch.no_grad():
            value.copy_(saved)
    for name, value in small.named_buffers(remove_duplicate=False):
        if name in tensors and value is not state[name]:
            raise FileFormatError(
                f"The buffer {name!r} could not be filled: the model's state_dict returns a copy of it."
            )


def _fill_buffer(small: nn.Module, name: str, saved: Tensor, path: Path) -> None:
    """Give a non-persistent buffer what was saved; one that had grown, or was made by a forward pass, is replaced."""
    prefix, _, leaf = name.rpartition(".")
    owner = dict(small.named_modules(remove_duplicate=False)).get(prefix)
    if owner is None:
        raise FileFormatError(f"{str(path)!r} holds {name!r}, which this model does not have.")
    here = owner._buffers.get(leaf)
    if here is not None and here.shape == saved.shape:
        _check_fillable(name, here)
        here.data = here.data.to(saved.dtype)
        with torch.no_grad():
            here.copy_(saved)
        return
    home = next((value for value in (here, *small.parameters(), *small.buffers()) if value is not None), saved)
    owner.__dict__.pop(leaf, None)
    owner.register_buffer(leaf, saved.to(home.device), persistent=False)


def _check_fillable(name: str, value: Tensor) -> None:
    if value.is_meta:
        raise FileFormatError(
            f"{name!r} of the model to load into is on the meta device. Build the model on a real device, or call "
            "model.to_empty(device=...) first."
        )


def _check_ties(state: Mapping[str, Tensor], tied: Mapping[str, str], path: Path) -> None:
    """Names that shared a tensor when they were saved must share one here, and no others may."""
    first: dict[tuple[Any, ...], str] = {}
    here: dict[str, str] = {}
    for name, value in state.items():
        if (key := _identity(value)) is not None and (earlier := first.setdefault(key, name)) != name:
            here[name] = earlier
    for name in sorted({*here, *tied}):
        if here.get(name) == tied.get(name):
            continue
        if name in tied:
            raise FileFormatError(
                f"In {str(path)!r} {name!r} is tied to {tied[name]!r}, but in this model it is a tensor of its own. "
                "Tie them before loading."
            )
        raise FileFormatError(
            f"In this model {name!r} is tied to {here[name]!r}, but {str(path)!r} holds two tensors. "
            "Untie them before loading."
        )


__all__ = ["PLAN_FILE", "WEIGHTS_FILE", "load", "read_plan", "save"]
