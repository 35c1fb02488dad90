"""Exported programs with a `torch.vmap` inside, as masks of transformers are made with: where it begins and ends is in
the graph, nothing reads it, and tensors in between have no memory to ask for."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import niwaki
from niwaki.testing import check_erasing
from niwaki.testing.models import randomised

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class Masked(nn.Module):
    """A mask of positions that is made with two nested vmaps, and written to in place; two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        def near(row: Tensor, column: Tensor) -> Tensor:
            return (row - column).abs() <= 1

        places = torch.arange(x.shape[1])
        mask = torch.vmap(torch.vmap(near, in_dims=(None, 0)), in_dims=(0, None))(places, places)
        weights = torch.zeros(mask.shape, dtype=x.dtype).masked_fill_(mask.logical_not(), float("-inf")).softmax(-1)
        x = x + self.first(weights @ x)
        made: Tensor = self.head(x + self.second(x))
        return made


def test_what_begins_and_ends_a_vmap_stays() -> None:
    torch.manual_seed(0)
    model = randomised(Masked().eval())
    space = niwaki.search_space(model, X, erase=True, as_graph=True)
    assert [one.name for one in space.structures if one.erasable] == ["first", "second"]
    keep = np.ones(space.num_units, dtype=bool)
    keep[space.groups[-1].first] = False
    small = niwaki.cut(model, space.plan(keep), as_graph=True, example_inputs=X)
    with torch.no_grad():
        model.second.weight.zero_()
        model.second.bias.zero_()
        assert torch.allclose(small.module()(X), model(X), atol=1e-6)
    assert check_erasing(model, X, plans=4, as_graph=True, least_erasable=2).erased > 0
