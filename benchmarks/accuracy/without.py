"""The loss without structures, as a network that goes on training would have it."""

from __future__ import annotations

import copy
from collections.abc import Collection

import numpy as np
import torch
from numpy.typing import NDArray

import niwaki
from benchmarks.accuracy.task import Task
from niwaki.core.dying import structure_units

LOOKED_AT = 4  # held-out batches


def losses_without(task: Task, space: niwaki.SearchSpace) -> NDArray[np.float64]:
    """By how much the loss on held-out batches grows without each structure, [num_units]: 0 for units, and for
    structures that no weights make."""
    dense, grown = loss_without(task, space), np.zeros(space.num_units)
    for unit in structure_units(space).values():
        grown[unit] = loss_without(task, space, (unit,)) - dense
    return grown


@torch.no_grad()
def loss_without(task: Task, space: niwaki.SearchSpace, gone: Collection[int] = ()) -> float:
    """The loss of the model of ``space`` on held-out batches, with what makes the results of ``gone``, numbers of
    units, at zero.

    Norms take the statistics of each batch, as in training. Running ones are of the network with the structure, and
    what comes behind it would look worse than it is.
    """
    model = copy.deepcopy(space.model).train()
    tensors = dict(model.state_dict(keep_vars=True))
    for piece in (piece for group in space.groups if group.first in gone for piece in group.slices):
        if piece.role.zeroed_by_method and piece.tensor in tensors:
            tensors[piece.tensor].detach().index_fill_(piece.dim, torch.from_numpy(piece.index[0]), 0)
    return float(np.mean([float(task.loss(model, batch)) for batch in task.held_out_batches()[:LOOKED_AT]]))
