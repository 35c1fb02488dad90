"""Write a directory of several files so that after a kill at any moment it holds the earlier files or all new ones.

``plan.json`` is the commit. The other files are first written under staged names that contain their SHA-256; until
``plan.json`` is replaced, `niwaki.load` reads the old files; after that, it finds the new ones under their staged names
until they are renamed over the old ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from niwaki.core.json_text import item_a_line
from niwaki.errors import FileFormatError
from niwaki.io.atomic import cannot_save, flush_directory, flush_file, sha256_of, write_atomically, write_flushed
from niwaki.io.format import FILES, PLAN_FILE, checksum, crc32, staged_name


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One file: ``content`` is text or tensors on the CPU, ``about`` its description in ``plan.json``."""

    content: str | Mapping[str, Tensor]
    about: Mapping[str, Any] = field(default_factory=dict)


def write_directory(target: Path, data: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    """Write ``plan.json`` and the files of ``parts`` (by the keys of `FILES`) into an existing directory, or create it
    with all files at once.

    Raises:
        FileFormatError: ``target`` is a file, or cannot be written to.
    """
    try:
        if target.exists() and not target.is_dir():
            raise FileFormatError(f"Cannot save to {str(target)!r}: it is a file. Name a directory.")
        if target.is_dir():
            _replace(target, data, parts)
        else:
            _make(target, data, parts)
    except (OSError, ValueError) as cause:  # a null character in a name is a ValueError
        raise cannot_save(target, cause) from cause


def _make(target: Path, data: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f".{_plain(target.name)}.*.tmp"):
        shutil.rmtree(left, ignore_errors=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        beside.mkdir()
        _write_into(beside, data, parts)
        os.rename(beside, target)
    except BaseException:  # also on Ctrl-C: no incomplete file may remain
        shutil.rmtree(beside, ignore_errors=True)
        raise
    flush_directory(target.parent)


def _plain(name: str) -> str:
    """``name`` as a pattern that matches itself only."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _replace(target: Path, data: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    try:
        _write_into(target, data, parts)
    except BaseException:
        with contextlib.suppress(OSError):
            _remove_leftovers(target)
        raise


def _write_into(directory: Path, data: Mapping[str, Any], parts: Mapping[str, Part]) -> None:
    _remove_leftovers(directory)
    before = _described(directory)
    digests = {key: _stage(directory, FILES[key], part.content) for key, part in parts.items()}
    data = {**data, **{key: {"sha256": digests[key], **part.about} for key, part in parts.items()}}
    data["checksum"] = checksum(data)
    write_atomically(directory / PLAN_FILE, item_a_line(data).encode())
    mode = (directory / PLAN_FILE).stat().st_mode
    for key, file in FILES.items():
        if key in parts:
            staged = directory / staged_name(file, digests[key])
            staged.chmod(mode)  # safetensors writes files for their owner alone
            os.replace(staged, directory / file)
        elif key in before:  # of the save before; any other file of this name is not niwaki's
            (directory / file).unlink(missing_ok=True)
    flush_directory(directory)
    _remove_leftovers(directory)


def _stage(directory: Path, file: str, content: str | Mapping[str, Tensor]) -> str:
    """Write one file under its staged name; returns its SHA-256."""
    stem, _, suffix = file.partition(".")
    staging = directory / f".{stem}-{uuid.uuid4().hex[:8]}.{suffix}.tmp"
    try:
        if isinstance(content, str):
            write_flushed(staging, content.encode())
        else:
            save_file(dict(content), staging, metadata={"format": "pt"})
            flush_file(staging)
        digest = sha256_of(staging)
        os.replace(staging, directory / staged_name(file, digest))
    except SafetensorError as cause:
        staging.unlink(missing_ok=True)
        raise FileFormatError(
            f"Cannot save to {str(directory)!r}: safetensors cannot write {file}: {cause}. Is the disk full?"
        ) from cause
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    return digest


def tensors_part(tensors: Mapping[str, Tensor], **about: Any) -> Part:
    """A file of tensors, which must be contiguous, on the CPU, and share no memory."""
    return Part(tensors, {"tensors": {name: crc32(tensor) for name, tensor in tensors.items()}, **about})


def _remove_leftovers(directory: Path) -> None:
    """Remove the files of killed saves: temporary files, and staged files that no plan refers to."""
    known = _committed(directory)
    for pattern in (f".{PLAN_FILE}.*.tmp", *(f".{file.replace('.', '-*.')}*" for file in FILES.values())):
        for left in directory.glob(pattern):
            if left.name not in known:
                left.unlink(missing_ok=True)


def _committed(directory: Path) -> set[str]:
    """The staged names that a plan refers to, because a save was killed after it was written."""
    return {staged_name(FILES[key], digest) for key, digest in _described(directory).items()}


def _described(directory: Path) -> dict[str, str]:
    """The digests of the files that the plan in a directory knows; empty if no plan can be read."""
    try:
        data = json.loads((directory / PLAN_FILE).read_bytes())
        return {key: str(data[key]["sha256"]) for key in FILES if key in data}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
