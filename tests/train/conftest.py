"""One short run that several tests look at or repeat: trained once."""

from __future__ import annotations

import pytest
import torch
from short_runs import SHORT, Recorder, ShortRun, train


@pytest.fixture(scope="session")
def short_run(tmp_path_factory: pytest.TempPathFactory) -> ShortRun:
    """Its files are for reading only."""
    with torch.random.fork_rng():
        out, told = tmp_path_factory.mktemp("short") / "out", Recorder()
        return ShortRun(out, train(SHORT, out, told), told)
