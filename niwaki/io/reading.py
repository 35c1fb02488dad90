"""Read a directory that `niwaki.save` wrote; every file is checked against its checksum before it is used."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from niwaki.core.names import plain_json, plain_name
from niwaki.core.plan import Plan
from niwaki.errors import FileFormatError, PlanError
from niwaki.io.atomic import sha256_of
from niwaki.io.format import DIRECTORY_FORMAT, FILES, PLAN_FILE, checksum, crc32, is_digest, staged_name


def read_description(directory: Path) -> tuple[Plan, Mapping[str, Any]]:
    """The plan, and the whole content of ``plan.json``, of which the descriptions of all files have been checked.

    Raises:
        FileFormatError: there is no plan, or it is damaged or from a newer niwaki.
    """
    path = directory / PLAN_FILE
    try:
        if not directory.exists():
            raise FileFormatError(f"There is no directory {str(directory)!r} to load from.")
        if not directory.is_dir():
            raise FileFormatError(
                f"Cannot load from {str(directory)!r}: it is a file. Name the directory that was saved."
            )
        if not path.is_file():
            raise FileFormatError(f"{str(directory)!r} has no {PLAN_FILE}: it is not a network that niwaki.save wrote.")
        text = path.read_bytes().decode()
        data = json.loads(text)
        plan = Plan.from_json(text)
    except OSError as cause:
        raise FileFormatError(f"{str(path)!r} cannot be read: {cause.strerror or cause}.") from cause
    except (ValueError, RecursionError) as cause:
        raise FileFormatError(f"{str(path)!r} is damaged: it is not valid JSON ({cause}).") from cause
    except PlanError as cause:
        raise FileFormatError(f"{str(path)!r} cannot be read. {cause}") from cause
    if "weights" not in data or "checksum" not in data:
        raise FileFormatError(
            f"{str(path)!r} holds a plan only, without the description of its weights: it is not a network that "
            "niwaki.save wrote."
        )
    if data["checksum"] != checksum(data):
        raise FileFormatError(f"{str(path)!r} is damaged: its content contradicts its checksum. Restore the file.")
    version = data.get("directory", DIRECTORY_FORMAT)  # missing in the files of niwaki 0.1
    if not isinstance(version, int) or not 1 <= version <= DIRECTORY_FORMAT:
        raise FileFormatError(
            f"{str(directory)!r} has the directory format {version!r}, and this niwaki reads formats up to "
            f"{DIRECTORY_FORMAT}. Use the niwaki version that wrote it."
        )
    for key in FILES.keys() & data.keys():
        if not _describes(data[key], tensors=FILES[key].endswith(".safetensors")):
            raise FileFormatError(
                f"{str(path)!r} does not describe {FILES[key]} as niwaki.save does: it was damaged or made by hand. "
                "Restore the file."
            )
    return plan, plain_json(data)


def read_plan(directory: str | os.PathLike[str]) -> Plan:
    """The plan of a saved network, checked against its checksum.

    Raises:
        FileFormatError: there is no plan, or it is damaged or from a newer niwaki.
    """
    return read_description(Path(directory))[0]


def _describes(about: Any, tensors: bool) -> bool:
    """Whether the description of a file in ``plan.json`` is complete. The digest becomes a part of a file name."""
    if not isinstance(about, dict) or not is_digest(about.get("sha256")):
        return False
    if not tensors:
        return True
    named, tied, buffers = about.get("tensors"), about.get("tied", {}), about.get("buffers", [])
    return (
        isinstance(named, dict)
        and all(isinstance(crc, int) for crc in named.values())
        and isinstance(tied, dict)
        and all(isinstance(first, str) and first in named for first in tied.values())
        and not tied.keys() & named.keys()
        and isinstance(buffers, list)
        and all(isinstance(name, str) and name in named for name in buffers)
    )


def file_of(directory: Path, data: Mapping[str, Any], key: str) -> Path:
    """The file that belongs to the plan.

    Raises:
        FileFormatError: it is missing.
    """
    file, digest = FILES[key], data[key]["sha256"]
    path, staged = directory / file, directory / staged_name(file, digest)
    if staged.is_file() and not (path.is_file() and sha256_of(path) == digest):
        return staged  # the save was killed between its last two steps
    if not path.is_file():
        raise FileFormatError(f"{str(directory)!r} has a {PLAN_FILE} but no {file}. Restore the file.")
    return path


def read_tensors(path: Path, about: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of the file, after its checksum.

    Raises:
        FileFormatError: the file is damaged; the message names the first tensor that differs.
    """
    planned: Mapping[str, int] = about["tensors"]
    try:
        intact = sha256_of(path) == about["sha256"]
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {plain_name(name): file.get_tensor(name) for name in file.keys()}
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
        if crc32(tensors[name]) != crc:
            raise FileFormatError(
                f"{str(path)!r} is damaged: the values of {name!r} contradict their checksum. Restore the file."
            )
    raise FileFormatError(
        f"{str(path)!r} contradicts its checksum in {PLAN_FILE}: its header was changed, though all values are intact. "
        "Restore the file."
    )


def read_text(path: Path, about: Mapping[str, Any]) -> str:
    """The text of the file, after its checksum.

    Raises:
        FileFormatError: the file is damaged.
    """
    try:
        if sha256_of(path) != about["sha256"]:
            raise FileFormatError(f"{str(path)!r} is damaged: it contradicts its checksum. Restore the file.")
        return path.read_bytes().decode()
    except (OSError, ValueError) as cause:
        raise FileFormatError(f"{str(path)!r} cannot be read: {cause}.") from cause
