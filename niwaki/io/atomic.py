"""Write files so that after a kill at any moment a file has its old or its new content, never a mixture."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

from niwaki.errors import FileFormatError


def write_atomically(path: Path, content: bytes) -> None:
    """Replace the content of ``path``: written beside it, flushed to the disk, then renamed over it."""
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        write_flushed(beside, content)
        os.replace(beside, path)
    except BaseException:  # also on Ctrl-C: no incomplete file may remain
        beside.unlink(missing_ok=True)
        raise
    flush_directory(path.parent)


def write_flushed(path: Path, content: bytes) -> None:
    """Write a new file and wait until its content is on the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def flush_file(path: Path) -> None:
    """Wait until a file that something else wrote is on the disk."""
    _flush(path, os.O_RDWR)


def flush_directory(directory: Path) -> None:
    """Wait until the names in a directory are on the disk (a no-op where directories cannot be opened)."""
    if os.name == "posix":
        _flush(directory, os.O_RDONLY)


def _flush(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cannot_save(directory: Path, cause: Exception) -> FileFormatError:
    """The error for a directory that could not be written to."""
    why = (isinstance(cause, OSError) and cause.strerror) or cause
    return FileFormatError(f"Cannot save to {str(directory)!r}: {why}. Name a directory that can be written to.")


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
