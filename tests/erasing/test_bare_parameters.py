"""A term that is a parameter, seen through a view, goes with the parameter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.testing import check_erasing
from niwaki.testing.models import randomised

X = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))


class RelativeAttention(nn.Module):
    """Attention with a bias per head that is added to queries, as in conformers; ``twice``: to keys, too."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.query, self.key, self.value, self.project = (nn.Linear(8, 8) for _ in range(4))
        self.bias, self.head, self.twice = nn.Parameter(torch.randn(2, 4)), nn.Linear(8, 3), twice

    def forward(self, x: Tensor) -> Tensor:
        def heads(tensor: Tensor) -> Tensor:
            return tensor.view(*tensor.shape[:-1], 2, 4).transpose(1, 2)

        query, key, value = heads(self.query(x)), heads(self.key(x)), heads(self.value(x))
        bias = self.bias.view(1, 2, 1, 4)
        query = query + bias
        key = key + bias if self.twice else key
        mixed = (query @ key.transpose(2, 3)).softmax(-1) @ value
        made: Tensor = self.head(x + self.project(mixed.transpose(1, 2).flatten(2)))
        return made


@pytest.mark.parametrize("twice", [False, True])
def test_a_bias_goes_with_its_term(twice: bool) -> None:
    torch.manual_seed(0)
    model = randomised(RelativeAttention(twice).eval())
    space = niwaki.search_space(model, X, erase=True, as_graph=True)
    (term,) = [one for one in space.structures if one.parameters == ("bias",)]
    assert term.erasable and len(term.operands) == 1 + twice
    keep = np.ones(space.num_units, dtype=bool)
    keep[[group.first for group in space.groups if group.structure == space.structures.index(term)]] = False
    plan = space.plan(keep)
    assert space.cost(plan).params == space.cost().params - 8
    small = niwaki.cut(model, plan, as_graph=True, example_inputs=X)
    with torch.no_grad():
        model.bias.zero_()
        assert "bias" not in small.state_dict and torch.allclose(small.module()(X), model(X), atol=1e-6)
    found = check_erasing(model, X, plans=4, as_graph=True, least_erasable=2)
    assert found.backward is not None and found.backward < 1e-8
