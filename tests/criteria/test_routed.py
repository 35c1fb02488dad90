"""REAP: experts by what they add to the tokens that they are given, however the mixture is written."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mixtures import EXPERTS, WIDTH, Around, Listed, Stacked
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import EraseExperts
from niwaki.criteria.routed import experts_of
from niwaki.errors import MethodError


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    made = model(batch)
    return (made[0] if isinstance(made, tuple) else made).square().mean()


def sizes(mixture: Listed, x: Tensor) -> list[list[float]]:
    """g_j ||f_j|| of the tokens of each expert, by a loop."""
    weight, chosen = mixture.choice(mixture.gate(x))
    found: list[list[float]] = [[] for _ in mixture.experts]
    for token, gates, numbers in zip(x, weight, chosen, strict=True):
        for gate, number in zip(gates, numbers, strict=True):
            found[int(number)].append(float(gate * mixture.experts[int(number)](token[None]).norm()))
    return found


@pytest.mark.parametrize("order", ["softmax, top-k", "normalised"])
def test_a_list_of_modules_against_a_loop(order: str) -> None:
    torch.manual_seed(0)
    model = Around(Listed(order), Listed(order)).double()
    space = niwaki.search_space(model, torch.randn(5, 3, dtype=torch.double), erase=True)
    batches = [torch.randn(n, 3, dtype=torch.double) for n in (40, 7)]
    seen: list[Tensor] = []
    hooks = [one.register_forward_pre_hook(lambda _, given: seen.append(given[0])) for one in model.layers]
    with torch.no_grad():
        for batch in batches:
            model(batch)
    for hook in hooks:
        hook.remove()
    found = niwaki.score(space, "reap", batches, loss)
    units = {space.structures[group.structure or 0].name: group.first for group in experts_of(space)}
    for place, layer in enumerate(model.layers):
        with torch.no_grad():
            each = [sizes(layer, x) for x in seen[place::2]]
        for number in range(EXPERTS):
            expected = np.mean([*each[0][number], *each[1][number]])  # over tokens, not over batches
            assert found.values[units[f"layers.{place}.experts.{number}"]] == pytest.approx(expected, rel=1e-9)


def test_one_tensor_for_all_experts_is_the_same() -> None:
    """By hand: one router row chosen by each token, experts that multiply by -2, 3, 0.5 and 1."""
    model = Around(Stacked(k=1))
    mixture = model.layers[0]
    with torch.no_grad():
        model.start.weight.copy_(torch.eye(WIDTH, 3))
        model.start.bias.zero_()
        mixture.router.zero_()
        mixture.router[:3, :3] = 50 * torch.eye(3)  # token i goes to expert i, with the gate 1
        for number, factor in enumerate((-2.0, 3.0, 0.5, 1.0)):
            mixture.up[number] = torch.eye(*mixture.up[number].shape)
            mixture.up_bias.zero_()
            mixture.down[number] = factor * torch.eye(*mixture.down[number].shape)
    space = niwaki.search_space(model, torch.randn(5, 3), erase=True)
    found = niwaki.score(space, "reap", [2 * torch.eye(3)], loss)
    inside = float(torch.tanh(torch.tensor(2.0)))
    values = [found.values[group.first] for group in experts_of(space)]
    assert values == pytest.approx([2 * inside, 3 * inside, 0.5 * inside, 0.0], rel=1e-5)
    assert set(found.silent) == set(range(space.num_units)) - {group.first for group in experts_of(space)}
    plan = niwaki.choose(space, found, niwaki.Budget(params=0.75), remove="structures")
    (edit,) = plan.edits_of(EraseExperts)
    assert list(edit.kept) == [0, 1]


def test_the_weights_are_as_they_were() -> None:
    model = Around(Listed())
    space = niwaki.search_space(model, torch.randn(5, 3), erase=True)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    niwaki.score(space, "reap", [torch.randn(9, 3)], loss)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def in_half(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return loss(model, batch)


@pytest.mark.parametrize("mixture", [lambda: Stacked(k=2), lambda: Listed("normalised")])
def test_under_autocast_and_in_half_precision(mixture: type[nn.Module]) -> None:
    """Autocast keeps casts of the weights, which must not outlive a zero."""
    torch.manual_seed(0)
    model, batch = Around(mixture()), torch.randn(64, 3)
    space = niwaki.search_space(model, torch.randn(5, 3), erase=True)
    units = [group.first for group in experts_of(space)]
    exact = niwaki.score(space, "reap", [batch], loss).values[units]
    assert (exact > 0.1).sum() >= 3
    np.testing.assert_allclose(niwaki.score(space, "reap", [batch], in_half).values[units], exact, rtol=0.05)
    model.bfloat16()
    halves = niwaki.score(space, "reap", [batch.bfloat16()], loss).values[units]
    np.testing.assert_allclose(halves, exact, rtol=0.05)


class Copied(Listed):
    """Computes with a copy of its experts."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "kept"):
            self.kept = [copy.deepcopy(self.experts)]
        own, self._modules["experts"] = self.experts, self.kept[0]
        try:
            return self.mixed(x, self.gate(x))
        finally:
            self._modules["experts"] = own


def test_experts_of_which_a_copy_computes_are_refused() -> None:
    model = Around(Listed())
    space = niwaki.search_space(model, torch.randn(5, 3), erase=True)
    model.layers[0].__class__ = Copied
    with pytest.raises(MethodError, match=r"'layers.0' did not change for any of them. Either they are zero already"):
        niwaki.score(space, "reap", [torch.randn(9, 3)], loss)


class Bent(Listed):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mixed(x, self.gate(x)))


def test_what_has_no_terms_is_refused() -> None:
    space = niwaki.search_space(Around(Bent()), torch.randn(5, 3), erase=True)
    with pytest.raises(MethodError, match=r"'layers.0', which has the router and its experts. But that result is not"):
        niwaki.score(space, "reap", [torch.randn(9, 3)], loss)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(MethodError, match=r"'reap' is for experts that a router chooses, of which this space has none"):
        niwaki.score(niwaki.search_space(model, torch.randn(1, 3)), "reap", [torch.randn(2, 3)], loss)
