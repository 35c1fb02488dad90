"""Several processes that share gradients over gloo, as `torchrun` would start them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

from torch import distributed, multiprocessing

Work = Callable[[int, str], None]


def side_by_side(work: Work, folder: Path, processes: int = 2) -> None:
    """Run `work(rank, folder)` in each of several processes that form one group; raise what one of them raised."""
    multiprocessing.spawn(_member, args=(work, str(folder), processes), nprocs=processes)


def _member(rank: int, work: Work, folder: str, processes: int) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=processes)
    work(rank, folder)
    distributed.barrier()
    # A thread of gloo that still holds a tensor asks for the interpreter's lock while the interpreter is being torn
    # down, and the process is aborted, now and then. So the interpreter is not torn down: all that was to do is done.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
