"""Moments of a run as directories, written so that a torn write leaves the one before.

``step-00000120/`` holds ``tensors.safetensors`` and ``state.json``: ``format`` (2; 1 had no ``checksum``), ``step``,
``facts``, ``tensors_sha256``, ``state`` (as in `niwaki.io.tree`) and ``checksum``, the SHA-256 of all that. Both are
written into a directory beside it that is renamed when they are on the disk; then older ones are removed. A step
that is written again, otherwise than before, becomes ``step-00000120.1``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from niwaki.errors import FileFormatError
from niwaki.files import flush_directory, flush_file, sha256_of, write_flushed
from niwaki.io.format import checksum
from niwaki.io.tree import decode, encode

MOMENT_FORMAT = 2
_STATE, _TENSORS = "state.json", "tensors.safetensors"
_NAME = re.compile(r"step-(\d{8,15})(?:\.(\d{1,9}))?")


@dataclass(frozen=True, slots=True, eq=False)
class Moment:
    """A moment of a run.

    ``step``: optimizer steps taken. ``facts``: JSON values that describe the run. ``state``: dictionaries, lists and
    tuples of JSON values and tensors, such as the model's and the optimizer's ``state_dict``.
    """

    step: int
    facts: Mapping[str, Any]
    state: Mapping[str, Any]


def moments_in(folder: Path) -> list[tuple[int, int, Path]]:
    """Step, attempt and directory of the moments that are there, oldest first."""
    found = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        if match := _NAME.fullmatch(entry.name):
            found.append((int(match[1]), int(match[2] or 0), entry))
    return sorted(found)


def write_moment(folder: Path, moment: Moment, keep: int) -> None:
    """Write a moment, then remove all but the last ``keep``, and those of later steps: another run has overtaken them.

    Raises:
        FileFormatError: it holds something that cannot be saved, or the folder cannot be written to.
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
        why = (isinstance(cause, OSError) and cause.strerror) or cause
        raise FileFormatError(
            f"Cannot save to {str(folder)!r}: {why}. Name a directory that can be written to."
        ) from cause
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _write(directory: Path, moment: Moment) -> None:
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


def read_moment(folder: Path) -> Moment:
    """The last moment.

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
        return Moment(content["step"], content["facts"], decode(content["state"], tensors))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as cause:
        raise FileFormatError(
            f"The checkpoint {str(last)!r} cannot be read: {type(cause).__name__}: {cause}. {_OTHERWISE}"
        ) from cause


_OTHERWISE = "Remove its directory to go on from the one before, or start the run again."


def _damaged(path: Path) -> str:
    return f"{str(path)!r} is damaged: it contradicts its checksum. {_OTHERWISE}"
