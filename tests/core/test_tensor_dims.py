"""Dimensions, their roles, and the slices of them that groups own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.core.tensor_dims import Role, TensorDim, slices_by_group


def test_slices_hold_the_positions_of_each_unit() -> None:
    """Two groups of two units: heads of two positions, and the positions in each head; 4 is no unit."""
    shared = np.array([[0, 2], [0, 3], [1, 2], [1, 3], [4, 4]])
    dims = [
        TensorDim("value", 0, shared, Role.PRODUCER, True),
        TensorDim("out", 1, shared, Role.CONSUMER, True),
        TensorDim("gate", 0, np.array([[1], [0], [4]]), Role.ZEROED_CONSUMER, True),
    ]
    heads, within = slices_by_group(dims, np.array([0, 2, 4]))
    assert [(piece.tensor, piece.index.tolist()) for piece in heads] == [
        ("value", [[0, 1], [2, 3]]),
        ("out", [[0, 1], [2, 3]]),
        ("gate", [[1], [0]]),
    ]
    assert [(piece.tensor, piece.index.tolist()) for piece in within] == [
        ("value", [[0, 2], [1, 3]]),
        ("out", [[0, 2], [1, 3]]),
    ]
    assert str(heads[2]) == "gate dim 0: 1 position per unit (consumer, zeroed too)"
    assert all(piece.whole is dims[number] for number, piece in enumerate(heads))


class EveryRole(nn.Module):
    """A weight norm, a sigmoid, which maps zero to one half, and a linear layer that reads zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Linear(4, 6))
        self.gated, self.last = nn.Linear(6, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.gated(self.first(x).relu()).sigmoid())


def test_each_role_is_found() -> None:
    space = niwaki.search_space(EveryRole(), torch.randn(3, 4))
    roles = {(dim.tensor, dim.dim): dim.role for dim in space.dims}
    assert roles["first.parametrizations.weight.original0", 0] is Role.PRODUCER
    assert roles["first.parametrizations.weight.original1", 0] is Role.DIRECTION
    assert roles["gated.weight", 1] is Role.CONSUMER
    assert roles["last.weight", 1] is Role.ZEROED_CONSUMER
    assert {role.consumes for role in (Role.CONSUMER, Role.ZEROED_CONSUMER)} == {True}
    assert not Role.DIRECTION.consumes and not Role.DIRECTION.produces and not Role.DIRECTION.zeroed_by_method


def test_the_old_names_warn() -> None:
    space = niwaki.search_space(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(1, 3))
    with pytest.warns(DeprecationWarning, match="space.places is called space.dims now"):
        assert space.places == space.dims
    with pytest.warns(DeprecationWarning, match="produces is role.produces now"):
        assert [dim.produces for dim in space.dims] == [dim.role.produces for dim in space.dims]
    with pytest.warns(DeprecationWarning, match="driven is role.zeroed_by_method now"):
        assert [dim.driven for dim in space.dims] == [dim.role.zeroed_by_method for dim in space.dims]
