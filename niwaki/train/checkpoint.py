"""Checkpoints: everything a run needs to go on to the same bits, as safetensors and JSON.

``checkpoints/step-00000120/`` holds ``tensors.safetensors`` and ``state.json``. Both are written into a directory
beside it that is renamed when they are on the disk; then older checkpoints are removed. A kill leaves the
old one or the new.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from niwaki.files import flush_directory, flush_file, sha256_of, write_flushed
from niwaki.train.errors import RunError

CHECKPOINT_FORMAT = 1
FOLDER = "checkpoints"
_STATE, _TENSORS = "state.json", "tensors.safetensors"


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A moment of a run.

    ``step``: optimizer steps taken. ``facts``: JSON values that describe the run. ``state``: dictionaries, lists and
    tuples of JSON values and tensors, such as the model's and the optimizer's ``state_dict``.
    """

    step: int
    facts: Mapping[str, Any]
    state: Mapping[str, Any]


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint below the directory ``run``, then remove the older ones."""
    folder = run / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    name = f"step-{checkpoint.step:08d}"
    beside, target = folder / f".{name}.tmp", folder / name
    if beside.exists():
        shutil.rmtree(beside)
    beside.mkdir()
    try:
        tensors: dict[str, Tensor] = {}
        state = _encode(checkpoint.state, "state", tensors)
        save_file(tensors, beside / _TENSORS)
        flush_file(beside / _TENSORS)
        content = {
            "format": CHECKPOINT_FORMAT,
            "step": checkpoint.step,
            "facts": dict(checkpoint.facts),
            "tensors_sha256": sha256_of(beside / _TENSORS),
            "state": state,
        }
        write_flushed(beside / _STATE, json.dumps(content).encode())
        flush_directory(beside)
        if target.exists():
            shutil.rmtree(target)  # only a run that was resumed here and has the same content comes by again
        os.rename(beside, target)
    except BaseException:  # also on Ctrl-C: nothing half written may stay behind
        shutil.rmtree(beside, ignore_errors=True)
        raise
    flush_directory(folder)
    for other in folder.iterdir():
        if other != target:
            shutil.rmtree(other, ignore_errors=True)


def read_checkpoint(run: Path) -> Checkpoint:
    """The last checkpoint below the directory ``run``.

    Raises:
        RunError: there is none, or it is damaged or from a newer niwaki.
    """
    found = sorted((run / FOLDER).glob("step-*"))
    if not found:
        raise RunError(f"There is no checkpoint in {str(run)!r} to resume from. Start the run without --resume.")
    last = found[-1]
    try:
        content = json.loads((last / _STATE).read_bytes())
        if content["format"] != CHECKPOINT_FORMAT:
            raise RunError(
                f"The checkpoint {str(last)!r} has format {content['format']!r}, and this niwaki reads format "
                f"{CHECKPOINT_FORMAT}. Resume with the niwaki version that wrote it."
            )
        if sha256_of(last / _TENSORS) != content["tensors_sha256"]:
            raise RunError(f"{str(last / _TENSORS)!r} is damaged: it contradicts its checksum. Start the run again.")
        tensors = load_file(last / _TENSORS)
        return Checkpoint(content["step"], content["facts"], _decode(content["state"], tensors))
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as cause:
        raise RunError(
            f"The checkpoint {str(last)!r} cannot be read: {type(cause).__name__}: {cause}. Start the run again."
        ) from cause


def remove_checkpoints(run: Path) -> None:
    """Remove all checkpoints below the directory ``run``."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of all random generators that a training step may use."""
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": (str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, gauss),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    """Put all random generators back to a state from `random_state`."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _encode(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON for ``value``; its tensors move to ``tensors`` and leave their name behind."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Tensor):
        tensors[name] = value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": name}
    if isinstance(value, Mapping):
        # As pairs: the keys of an optimizer's state are numbers, which JSON objects do not have.
        pairs = [[_encode(k, name, tensors), _encode(v, f"{name}.{k}", tensors)] for k, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{name}.{position}", tensors) for position, item in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    raise RunError(
        f"The run cannot be checkpointed: {name} is a {type(value).__qualname__}, and checkpoints hold tensors, "
        "numbers, text, lists and dictionaries only."
    )


def _decode(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `_encode` was given."""
    if isinstance(value, list):
        return [_decode(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {_decode(k, tensors): _decode(v, tensors) for k, v in content}
    return tuple(_decode(item, tensors) for item in content)
