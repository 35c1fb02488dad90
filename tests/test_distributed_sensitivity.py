"""The sensitivity of layers is the same in all processes, although each looks at its own data."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from handmade import MLP, mlp_space
from torch import distributed, multiprocessing

from niwaki.methods.sensitivity import layer_losses
from niwaki.methods.vectorised import VectorisedUnits


def losses(data: int) -> np.ndarray:
    torch.manual_seed(0)
    model = MLP()
    space = mlp_space(model)
    units = VectorisedUnits(space, torch.optim.SGD(model.parameters(), lr=0.1))
    x = torch.randn(8, 6, generator=torch.Generator().manual_seed(data))
    saliency = np.arange(space.num_units, dtype=np.float64)
    return layer_losses(space, units, saliency, lambda: model(x).square().mean())


def work(rank: int, folder: str) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    np.save(f"{folder}/{rank}.npy", losses(rank))
    distributed.destroy_process_group()


def test_processes_agree_on_the_mean() -> None:
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(work, args=(folder,), nprocs=2)
        found = [np.load(Path(folder) / f"{rank}.npy") for rank in range(2)]
    alone = [losses(rank) for rank in range(2)]
    assert np.array_equal(*found) and not np.allclose(*alone)
    np.testing.assert_allclose(found[0], (alone[0] + alone[1]) / 2, rtol=1e-6)
