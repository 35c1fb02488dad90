"""The sensitivity of layers is the same in all processes, although each looks at its own data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from handmade import MLP, mlp_space
from processes import side_by_side

from niwaki.methods.sensitivity import layer_losses
from niwaki.per_unit.fast import FastUnits


def losses(data: int) -> np.ndarray:
    torch.manual_seed(0)
    model = MLP()
    space = mlp_space(model)
    units = FastUnits(space, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(data))
    saliency = np.arange(space.num_units, dtype=np.float64)
    return layer_losses(space, units, saliency, lambda: model(x).square().mean())


def work(rank: int, folder: str) -> None:
    np.save(f"{folder}/{rank}.npy", losses(rank))


def test_processes_agree_on_the_mean(tmp_path: Path) -> None:
    side_by_side(work, tmp_path)
    found = [np.load(tmp_path / f"{rank}.npy") for rank in range(2)]
    alone = [losses(rank) for rank in range(2)]
    assert np.array_equal(*found) and not np.allclose(*alone)
    np.testing.assert_allclose(found[0], (alone[0] + alone[1]) / 2, rtol=1e-6)
