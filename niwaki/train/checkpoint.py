"""The checkpoints of `niwaki train`: the last state of a run, in ``checkpoints/`` below its directory."""

from __future__ import annotations

import shutil
from pathlib import Path

from niwaki.errors import FileFormatError, RunError
from niwaki.io.checkpoints import CheckpointData as Checkpoint
from niwaki.io.checkpoints import moments_in, random_state, read_moment, set_random_state, write_moment

FOLDER = "checkpoints"


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint below the directory ``run``, then remove the older ones.

    Raises:
        RunError: the state cannot be saved, or the directory cannot be written to.
    """
    try:
        write_moment(run / FOLDER, checkpoint, keep=1)
    except FileFormatError as cause:
        raise RunError(f"The run cannot be checkpointed. {cause}") from cause


def read_checkpoint(run: Path) -> Checkpoint:
    """The last checkpoint below the directory ``run``.

    Raises:
        RunError: no checkpoint exists, or it is damaged or from a newer niwaki.
    """
    if not moments_in(run / FOLDER):
        raise RunError(f"There is no checkpoint in {str(run)!r} to resume from. Start the run without --resume.")
    try:
        return read_moment(run / FOLDER)
    except FileFormatError as cause:
        raise RunError(str(cause)) from cause


def remove_checkpoints(run: Path) -> None:
    """Remove all checkpoints below the directory ``run``."""
    shutil.rmtree(run / FOLDER, ignore_errors=True)


__all__ = [
    "FOLDER",
    "Checkpoint",
    "random_state",
    "read_checkpoint",
    "remove_checkpoints",
    "set_random_state",
    "write_checkpoint",
]
