"""Checkpoints of a run: the last few states, each a complete directory from which the run resumes bit-identically.

``step-00000120/`` holds ``tensors.safetensors`` and ``state.json``: ``format`` (2; 1 had no ``checksum``), ``step``,
``facts``, ``tensors_sha256``, ``state`` (as in `niwaki.io.tree`) and ``checksum``, the SHA-256 of all that. Both are
written into a directory beside it that is renamed when they are on the disk; then older ones are removed. A step that
is written again with other content becomes ``step-00000120.1``.
"""

from __future__ import annotations

import copy
import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.plan import Plan
from niwaki.errors import FileFormatError, NiwakiError
from niwaki.io.atomic import cannot_save, flush_directory, flush_file, sha256_of, write_flushed
from niwaki.io.format import checksum
from niwaki.io.optimizer import keep_dtypes
from niwaki.io.tree import decode, encode
from niwaki.surgery.history import plan_of


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of torch's generators on the CPU and on ``device``, of numpy's and of Python's."""
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
    """Set all random generators to a state from `random_state`."""
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    kind, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


MOMENT_FORMAT = 2


_STATE, _TENSORS = "state.json", "tensors.safetensors"


_NAME = re.compile(r"step-(\d{8,15})(?:\.(\d{1,9}))?")


@dataclass(frozen=True, slots=True, eq=False)
class CheckpointData:
    """The state of a run after a step.

    ``step``: optimizer steps taken. ``facts``: JSON values that describe the run. ``state``: dictionaries, lists and
    tuples of JSON values and tensors, such as the model's and the optimizer's ``state_dict``.
    """

    step: int
    facts: Mapping[str, Any]
    state: Mapping[str, Any]


def moments_in(folder: Path) -> list[tuple[int, int, Path]]:
    """Step, attempt and directory of the existing checkpoints, oldest first."""
    found = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(entry.name):
            found.append((int(match[1]), int(match[2] or 0), entry))
    return sorted(found)


def write_moment(folder: Path, moment: CheckpointData, keep: int) -> None:
    """Write a checkpoint, then remove all but the last ``keep``, and those of later steps, which belong to an abandoned
    run.

    Raises:
        FileFormatError: the state cannot be saved, or the folder cannot be written to.
    """
    name = f"step-{moment.step:08d}"
    beside = folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if beside.exists():
            shutil.rmtree(beside)
        beside.mkdir()
        _write(beside, moment)
        there = [(attempt, entry) for step, attempt, entry in moments_in(folder) if step == moment.step]
        if not there or (there[-1][1] / _STATE).read_bytes() != (beside / _STATE).read_bytes():
            os.rename(beside, folder / (f"{name}.{there[-1][0] + 1}" if there else name))
        flush_directory(folder)
        _remove_others(folder, moment.step, keep)
    except (OSError, SafetensorError) as cause:
        raise cannot_save(folder, cause) from cause
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(directory: Path, moment: CheckpointData) -> None:
    tensors: dict[str, Tensor] = {}
    state = encode(moment.state, "state", tensors)
    save_file(tensors, directory / _TENSORS)
    flush_file(directory / _TENSORS)
    content: dict[str, Any] = {
        "format": MOMENT_FORMAT,
        "step": moment.step,
        "facts": dict(moment.facts),
        "tensors_sha256": sha256_of(directory / _TENSORS),
        "state": state,
    }
    content["checksum"] = checksum(content)
    write_flushed(directory / _STATE, json.dumps(content).encode())
    flush_directory(directory)


def _remove_others(folder: Path, step: int, keep: int) -> None:
    moments = moments_in(folder)
    earlier = [entry for at, _, entry in moments if at <= step]
    for entry in (*(entry for at, _, entry in moments if at > step), *earlier[:-keep], *folder.glob(".step-*.tmp")):
        shutil.rmtree(entry, ignore_errors=True)


def read_moment(folder: Path) -> CheckpointData:
    """Read the last checkpoint.

    Raises:
        FileFormatError: there is none, or it is damaged or from a newer niwaki.
    """
    found = moments_in(folder)
    if not found:
        raise FileFormatError(f"There is no checkpoint in {str(folder)!r}.")
    last = found[-1][2]
    try:
        content = json.loads((last / _STATE).read_bytes())
        if content["format"] not in range(1, MOMENT_FORMAT + 1):
            raise FileFormatError(
                f"The checkpoint {str(last)!r} has format {content['format']!r}, and this niwaki reads formats up to "
                f"{MOMENT_FORMAT}. Resume with the niwaki version that wrote it."
            )
        if content["format"] > 1 and content["checksum"] != checksum(content):
            raise FileFormatError(_damaged(last / _STATE))
        if sha256_of(last / _TENSORS) != content["tensors_sha256"]:
            raise FileFormatError(_damaged(last / _TENSORS))
        tensors = load_file(last / _TENSORS)
        return CheckpointData(content["step"], content["facts"], decode(content["state"], tensors))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as cause:
        raise FileFormatError(
            f"The checkpoint {str(last)!r} cannot be read: {type(cause).__name__}: {cause}. {_OTHERWISE}"
        ) from cause


_OTHERWISE = "Remove its directory to continue from the one before, or start the run again."


def _damaged(path: Path) -> str:
    return f"{str(path)!r} is damaged: it contradicts its checksum. {_OTHERWISE}"


class Stateful(Protocol):
    """Models, optimizers (with the method that is attached to one), schedulers, gradient scalers, averaged models."""

    def state_dict(self) -> Any:
        """Everything that changes, as nested dictionaries and lists of tensors and plain values."""

    def load_state_dict(self, state_dict: Any) -> Any:
        """Continue from a state that `state_dict` returned."""


@final
class Checkpoints:
    """The checkpoints of one run, in one directory.

    Args:
        directory: created, with its parents, at the first `save`.
        keep: the number of checkpoints to keep; an old one is removed after a new one is complete on the disk.

    Example:
        >>> import tempfile, torch, niwaki
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     checkpoints = niwaki.Checkpoints(directory)
        ...     parts = {"model": model, "optimizer": optimizer}
        ...     checkpoints.save(120, parts, position={"epoch": 3, "batch": 20})
        ...     checkpoints.load(parts)  # later, in a fresh process: also puts all random generators back
        (120, {'epoch': 3, 'batch': 20})
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int = 2) -> None:
        if keep < 1:
            raise FileFormatError(f"keep={keep} must be 1 or more: a run continues from its last checkpoint.")
        self.directory, self.keep = Path(directory), keep

    @property
    def latest(self) -> int | None:
        """The step of the last checkpoint; None before the first one."""
        found = moments_in(self.directory)
        return found[-1][0] if found else None

    def save(self, step: int, parts: Mapping[str, Stateful], position: Any = None) -> None:
        """Write a checkpoint: the state of all parts, of all random generators, and the position in the data.

        Args:
            step: optimizer steps taken; the checkpoint with the largest is the last one.
            parts: the objects that change during the run, by names of your choice.
            position: the position of the run in its data: numbers, text, tensors, and lists and dictionaries of them.

        Raises:
            FileFormatError: something cannot be saved, and the message says what; or the directory cannot be written
                to. Earlier checkpoints are kept then.
        """
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise FileFormatError(f"step={step!r} must be a whole number, 0 or more.")
        plans = {name: plan_of(part) for name, part in parts.items() if isinstance(part, nn.Module)}
        facts = {"plans": {name: plan.to_json() for name, plan in plans.items() if plan is not None}}
        state = {
            "parts": {name: part.state_dict() for name, part in parts.items()},
            "position": position,
            "random": random_state(_device(parts)),
        }
        write_moment(self.directory, CheckpointData(step, facts, state), self.keep)

    def load(self, parts: Mapping[str, Stateful]) -> tuple[int, Any]:
        """Continue from the last checkpoint.

        Args:
            parts: built as they were when the run began, by the same names. A model that had been cut or shrunk must be
                cut first: `plan` returns the plan for that.

        Returns:
            The step, and the position that was saved with it.

        Raises:
            FileFormatError: there is no checkpoint, it is damaged, from a newer niwaki, or of other parts; the message
                names the first difference. Nothing is changed then.
        """
        moment = read_moment(self.directory)
        try:
            saved, drawn = moment.state["parts"], moment.state["random"]
            for name in (*saved, *parts):
                if name not in saved or name not in parts:
                    raise FileFormatError(
                        f"The checkpoint of step {moment.step} in {str(self.directory)!r} has the parts "
                        f"{', '.join(saved)}, and here are {', '.join(parts)}. Give the same parts by the same names."
                    )
                part = parts[name]
                if isinstance(part, nn.Module):
                    self._check_shapes(name, part, saved[name], moment)
            before = {name: copy.deepcopy(p.state_dict()) for name, p in parts.items() if not isinstance(p, nn.Module)}
            here = random_state(_device(parts))
            try:
                set_random_state(drawn, _device(parts))
                for name in sorted(parts, key=lambda name: isinstance(parts[name], nn.Module)):
                    _load(parts[name], saved[name])
            except BaseException:
                set_random_state(here, _device(parts))
                for name, state in before.items():
                    parts[name].load_state_dict(state)
                raise
            return moment.step, moment.state["position"]
        except NiwakiError:
            raise
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as cause:
            raise FileFormatError(
                f"The checkpoint of step {moment.step} in {str(self.directory)!r} does not fit: "
                f"{type(cause).__qualname__}: {cause}. Build all parts as they were when the run began."
            ) from cause

    def plan(self, part: str = "model") -> Plan | None:
        """The plan by which a model had been cut or shrunk when the last checkpoint was written; None if it was not.

        Raises:
            FileFormatError: there is no checkpoint, or it is damaged.
        """
        text = read_moment(self.directory).facts["plans"].get(part)
        return None if text is None else Plan.from_json(text)

    def _check_shapes(self, name: str, model: nn.Module, saved: Mapping[str, Any], moment: CheckpointData) -> None:
        here, there = (_shapes(state) for state in (model.state_dict(), saved))
        for key in (*there, *here):
            if here.get(key) != there.get(key):
                advice = "Build the model as it was when the run began."
                if name in moment.facts["plans"]:
                    advice = f"It had been cut or shrunk: cut it again by Checkpoints.plan({name!r}) first."
                raise FileFormatError(
                    f"The checkpoint of step {moment.step} in {str(self.directory)!r} is of another {name}: {key!r} "
                    f"was {there.get(key, 'not there')} and is {here.get(key, 'not there')}. {advice}"
                )


def _shapes(state: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(value.shape) if isinstance(value, torch.Tensor) else "no tensor" for name, value in state.items()
    }


def _load(part: Stateful, state: Any) -> None:
    part.load_state_dict(state)
    if isinstance(part, Optimizer):
        parameters = [parameter for group in part.param_groups for parameter in group["params"]]
        numbers = [number for group in state["param_groups"] for number in group["params"]]
        keep_dtypes(part, dict(zip(numbers, parameters, strict=True)), state["state"])


def _device(parts: Mapping[str, Stateful]) -> torch.device:
    """The device of the first model."""
    models = (part for part in parts.values() if isinstance(part, nn.Module))
    return next((tensor.device for model in models for tensor in model.parameters()), torch.device("cpu"))
