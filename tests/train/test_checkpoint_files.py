"""Checkpoints of a run: what they hold, what they refuse, and damage."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from short_runs import CPU

from niwaki.errors import RunError
from niwaki.train.checkpoint import (
    FOLDER,
    Checkpoint,
    random_state,
    read_checkpoint,
    set_random_state,
    write_checkpoint,
)


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    state = {
        "a": torch.arange(3),
        "nested": [1, 2.5, None, True, "text", (torch.zeros(0), float("inf"))],
        "numbers": {0: {"step": torch.tensor(2.0)}, 1: {}},
    }
    write_checkpoint(tmp_path, Checkpoint(3, {"k": 1}, {}))
    write_checkpoint(tmp_path, Checkpoint(12, {"k": 2}, state))
    assert [entry.name for entry in (tmp_path / FOLDER).iterdir()] == ["step-00000012"]
    found = read_checkpoint(tmp_path)
    assert (found.step, found.facts) == (12, {"k": 2})
    assert torch.equal(found.state["a"], state["a"])
    assert found.state["nested"][:5] == state["nested"][:5]
    assert found.state["nested"][5][1] == float("inf")
    assert set(found.state["numbers"]) == {0, 1}
    assert torch.equal(found.state["numbers"][0]["step"], torch.tensor(2.0))


def test_checkpoint_refuses_what_it_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="'state.optimizer.hook': it is a object"):
        write_checkpoint(tmp_path, Checkpoint(1, {}, {"optimizer": {"hook": object()}}))
    assert not list((tmp_path / FOLDER).iterdir())


def test_damaged_checkpoints_are_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no checkpoint in"):
        read_checkpoint(tmp_path)
    write_checkpoint(tmp_path, Checkpoint(1, {}, {"a": torch.zeros(8)}))
    tensors = tmp_path / FOLDER / "step-00000001" / "tensors.safetensors"
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(RunError, match="is damaged: it contradicts its checksum"):
        read_checkpoint(tmp_path)
    tensors.unlink()
    with pytest.raises(RunError, match="cannot be read: FileNotFoundError"):
        read_checkpoint(tmp_path)
    (tmp_path / FOLDER / "step-00000001" / "state.json").write_text('{"format": 7}')
    with pytest.raises(RunError, match="has format 7, and this niwaki reads formats up to 2"):
        read_checkpoint(tmp_path)


def test_random_generators_are_restored() -> None:
    def draw() -> tuple[float, float, float, float]:
        return float(torch.rand(())), random.random(), float(np.random.rand()), float(np.random.randn())

    state = random_state(CPU)
    first = draw()
    set_random_state(state, CPU)
    assert draw() == first
