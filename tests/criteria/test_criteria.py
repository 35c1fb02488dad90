"""Criteria: every registered one against a loop over units, and what `score` promises and refuses."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from handmade import MLP, ConvNet, Overlap, conv_space, mlp_space, overlap_space
from torch import Tensor, nn

from niwaki.core.space import SearchSpace
from niwaki.criteria import criteria, criterion, normalise, score
from niwaki.criteria.score import Scores
from niwaki.errors import MethodError, UnknownName
from niwaki.per_unit.sums import UnitSums

NETS: dict[str, tuple[Callable[[], nn.Module], Callable[..., SearchSpace], tuple[int, ...]]] = {
    "mlp": (MLP, mlp_space, (6,)),
    "conv": (ConvNet, conv_space, (1, 8, 8)),
    "overlap": (Overlap, overlap_space, (5,)),
}

# compared with their definitions in test_criteria_data.py, or drawn
ELSEWHERE = {
    "random",
    "activation",
    "energy",
    "small_contributions",
    "hessian",
    "relative_hessian_trace",
    "batchnorm_scale",
    "cka",
    "exemplar",
    "reap",
    "reinitialised",
}


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    return model(batch).square().mean()


def unit_vector(space: SearchSpace, tensors: dict[str, Tensor], number: int, readers: bool = False) -> Tensor:
    """All producing entries of one unit, flat, by its slices; with those that read it, if asked for."""
    group = next(g for g in space.groups if g.first <= number < g.first + g.units)
    return torch.cat(
        [
            tensors[s.tensor].index_select(s.dim, torch.from_numpy(s.index[number - group.first])).flatten()
            for s in group.slices
            if s.parameter and (s.role.produces or (readers and s.role.consumes))
        ]
    )


def by_hand(name: str, x: Tensor, h: Tensor, group: list[Tensor]) -> float:
    """The definitions, with the gradient as the direction of descent; ``group``: the weights of all units of x's."""
    return float(
        {
            "drive": (x.abs() + (x * h).abs() + h.abs()).sum(),
            "fisher": (x @ h) ** 2 / 2,
            "lamp": x @ x / sum(other @ other for other in group if other.norm() >= x.norm()),
            "geometric_median": sum((x - other).norm() for other in group),
            "magnitude": x.norm(),
            "magnitude_l1": x.abs().sum(),
            "average_magnitude": x.norm() / len(x),
            "cosine": 1 - torch.nn.functional.cosine_similarity(x, h, dim=0),
            "taylor1": (x @ h).abs(),
            "taylor2": ((x * h) ** 2).sum() / 2,
        }[name]
    )


@pytest.mark.parametrize("readers", [False, True])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", sorted(set(criteria()) - ELSEWHERE))
def test_against_a_loop_over_units(net: str, name: str, readers: bool) -> None:
    build, space_of, shape = NETS[net]
    model = build().double()
    space = space_of(model)
    batches = [torch.randn(5, *shape, dtype=torch.double) for _ in range(3)]
    found = score(space, name, batches, loss, readers=readers)
    assert found.criterion == name and found.values.dtype == np.float64

    readers = readers and name != "geometric_median"  # of distances between units, which are of what makes them
    parameters = dict(model.named_parameters())
    model.eval()
    expected = np.zeros(space.num_units)
    for batch in batches:
        grads = dict(zip(parameters, torch.autograd.grad(loss(model, batch), list(parameters.values())), strict=True))
        for unit in range(space.num_units):
            weights = {k: v.detach() for k, v in parameters.items()}
            home = next(g for g in space.groups if g.first <= unit < g.first + g.units)
            group = [
                unit_vector(space, weights, other, readers) for other in range(home.first, home.first + home.units)
            ]
            x, slope = (unit_vector(space, each, unit, readers) for each in (weights, grads))
            expected[unit] += by_hand(name, x, slope, group) / 3
    np.testing.assert_allclose(found.values, expected, rtol=1e-7)


def test_curvature_is_of_the_weights_that_make_a_unit() -> None:
    space, batches = mlp_space(MLP()), [torch.randn(5, 6)]
    for name in ("hessian", "relative_hessian_trace"):
        with pytest.raises(MethodError, match=rf"The criterion '{name}' is defined by the weights that make a unit"):
            score(space, name, batches, loss, readers=True)
    with pytest.raises(MethodError, match="readers='no' must be True or False"):
        score(space, "magnitude", readers="no")  # type: ignore[arg-type]


def test_random_follows_its_seed() -> None:
    space = mlp_space(MLP())
    first, again, other = (score(space, "random", seed=seed).values for seed in (1, 1, 2))
    assert (first == again).all() and (first != other).any()
    assert first.min() >= 0 and first.max() < 1


def test_cosine_calls_a_shrinking_unit_redundant() -> None:
    x, d = torch.tensor([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]), torch.tensor([[1.0, 2.0], [-1.0, -2.0], [0.0, 0.0]])
    sums = UnitSums(
        num_units=3,
        number=torch.arange(3),
        entries=torch.full((3,), 2.0),
        square=x.square().sum(1),
        aligned=(x * d).sum(1),
        direction_square=d.square().sum(1),
    )
    values = criteria()["cosine"].saliency(sums)  # x goes to x - lr * d: the first shrinks, the second grows
    torch.testing.assert_close(values, torch.tensor([0.0, 2.0, 1.0]))


def test_taylor2_sees_curvature_where_first_order_cancels() -> None:
    sums = UnitSums(
        num_units=2,
        number=torch.arange(2),
        entries=torch.ones(2),
        product=torch.tensor([3.0 - 3.0, 0.5]),
        product_square=torch.tensor([9.0 + 9.0, 0.25]),
    )
    first, second = (criteria()[name].saliency(sums) for name in ("taylor1", "taylor2"))
    assert first[0] < first[1] and second[0] > second[1]


def test_what_each_criterion_needs() -> None:
    needs = {name: (c.needs_gradients, c.needs_direction) for name, c in criteria().items()}
    assert needs == {
        "magnitude": (False, False),
        "magnitude_l1": (False, False),
        "average_magnitude": (False, False),
        "random": (False, False),
        "cosine": (False, True),
        "taylor1": (True, False),
        "taylor2": (True, False),
        "drive": (True, False),
        "fisher": (True, False),
        "exemplar": (False, False),
        "lamp": (False, False),
        "geometric_median": (False, False),
        "batchnorm_scale": (False, False),
        "activation": (False, False),
        "energy": (False, False),
        "small_contributions": (False, False),
        "hessian": (False, False),
        "relative_hessian_trace": (False, False),
        "cka": (False, False),
        "reap": (False, False),
        "reinitialised": (False, False),
    }
    assert {name for name, c in criteria().items() if c.needs_absence} == {"cka", "reap", "reinitialised"}
    seen = {"activation", "energy", "small_contributions"}
    assert {name for name, c in criteria().items() if c.needs_activations} == seen
    assert {name for name, c in criteria().items() if c.needs_curvature} == {"hessian", "relative_hessian_trace"}


def test_lamp_of_equal_and_of_dead_units() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    square = torch.tensor([1.0, 1.0, 2.0, 0.0, 5.0, 0.0])
    sums = UnitSums(num_units=6, number=torch.arange(6), entries=torch.ones(6), square=square, group=group)
    expected = torch.tensor([1 / 4, 1 / 3, 1.0, 0.0, 1.0, 0.0])
    torch.testing.assert_close(criteria()["lamp"].saliency(sums), expected)


def test_lamp_of_groups_of_any_scale() -> None:
    group = torch.tensor([0, 0, 0, 1, 1, 1])
    square = torch.tensor([1e12, 1e12, 2e12, 1e-12, 1e-12, 2e-12])
    sums = UnitSums(num_units=6, number=torch.arange(6), entries=torch.ones(6), square=square, group=group)
    torch.testing.assert_close(criteria()["lamp"].saliency(sums), torch.tensor([1 / 4, 1 / 3, 1.0] * 2))


def test_the_geometric_median_is_near_the_median() -> None:
    model = MLP()
    with torch.no_grad():
        model.a.weight.copy_(torch.linspace(-1, 1, 12).unsqueeze(1).expand(12, 6))
        model.a.bias.zero_()
    values = score(mlp_space(model), "geometric_median").values[:12]
    assert np.argsort(values)[:2].tolist() in ([5, 6], [6, 5]) and values.argmax() in (0, 11)


def test_the_model_is_left_as_it_was() -> None:
    model = ConvNet().train()
    model.norm1.eval()
    model.stem.weight.requires_grad_(False)
    model.head.weight.grad = torch.ones_like(model.head.weight)
    space = conv_space(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()

    def noisy(net: nn.Module, batch: Tensor) -> Tensor:
        net.norm2.running_mean.add_(torch.rand(1))
        return loss(net, batch)

    def failing(net: nn.Module, batch: Tensor) -> Tensor:
        raise ValueError("no such batch")

    assert score(space, "taylor1", [torch.randn(4, 1, 8, 8, generator=torch.Generator())], noisy).values.min() > 0
    with pytest.raises(ValueError, match="no such batch"):
        score(space, "taylor1", [0], failing)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.stem.weight.requires_grad
    assert torch.equal(model.head.weight.grad, torch.ones_like(model.head.weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "head.weight")


def test_a_parameter_without_gradient_contributes_nothing() -> None:
    model = MLP()
    space = mlp_space(model)
    values = score(space, "taylor1", [torch.randn(4, 6)], lambda net, batch: net.a(batch).square().mean()).values
    assert (values[space.groups[0].numbers] > 0).all() and (values[space.groups[1].numbers] == 0).all()


def test_callables_are_criteria() -> None:
    space = mlp_space(MLP())

    def by_number(of: SearchSpace) -> list[int]:
        return list(range(of.num_units))

    found = score(space, by_number)
    assert found.criterion == "by_number"
    assert found.values.tolist() == list(range(space.num_units))
    assert score(space, lambda of: torch.ones(of.num_units, requires_grad=True)).values.sum() == space.num_units


def test_a_new_criterion_is_one_decorated_function() -> None:
    from niwaki.criteria import registry

    try:

        @criterion("test_square", reads=("square",))
        def square(unit: UnitSums) -> Tensor:
            """The squared norm."""
            return unit.square

        space = mlp_space(MLP())
        np.testing.assert_allclose(score(space, "test_square").values, score(space, "magnitude").values ** 2, rtol=1e-6)
        with pytest.raises(MethodError, match="already a criterion 'test_square'"):
            criterion("test_square")(square.saliency)
    finally:
        registry._REGISTRY.pop("test_square", None)
    with pytest.raises(MethodError, match="reads a sum 'cube', which UnitSums does not have"):
        criterion("test_cube", reads=("cube",))(lambda unit: unit.square)


def test_errors_are_sentences() -> None:
    space = mlp_space(MLP())
    x = [torch.randn(2, 6)]
    with pytest.raises(
        UnknownName,
        match="no criterion 'magnitud'. Did you mean magnitude.* Registered are: activation, average_magnitude, batch",
    ):
        score(space, "magnitud")
    for odd in (5, None, ["magnitude"], {5: 1.0}):
        with pytest.raises(MethodError, match="is not a criterion: pass the name of one, such as 'magnitude', a func"):
            score(space, odd)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match=r"space is a MLP, but must be what niwaki.search_space\(model"):
        score(MLP(), "magnitude")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match=r"seed=1.5 must be a whole number of 64 bits"):
        score(space, "random", seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="'taylor1' is defined by the gradient .* needs batches and loss_fn: some"):
        score(space, "taylor1")
    with pytest.raises(MethodError, match="needs loss_fn: some batches"):
        score(space, "cosine", x)
    with pytest.raises(MethodError, match="batches is empty, so the criterion 'taylor2' has nothing to"):
        score(space, "taylor2", [], loss)
    with pytest.raises(MethodError, match=r"must return the scalar loss .* but returned a tensor of shape \[2, 3\]"):
        score(space, "taylor1", x, lambda model, batch: model(batch))
    with pytest.raises(MethodError, match="but returned a float. Reduce"):
        score(space, "taylor1", x, lambda model, batch: 1.0)
    with pytest.raises(MethodError, match="does not depend on the model's parameters"):
        score(space, "taylor1", x, lambda model, batch: batch.sum())
    with pytest.raises(MethodError, match="The loss of batch 0 is nan"):
        score(space, "taylor1", x, lambda model, batch: model(batch).sum() * float("nan"))
    with pytest.raises(MethodError, match=r"one number per unit, an array of shape \[20\], but returned the shape \[3"):
        score(space, lambda of: [1.0, 2.0, 3.0])
    with pytest.raises(MethodError, match="is nan for unit 2 of the group 'second'. Scores must be finite"):
        score(space, lambda of: np.where(np.arange(20) == 14, np.nan, 1.0))
    with pytest.raises(MethodError, match="returned something that is not an array of numbers"):
        score(space, lambda of: "high")


def test_negative_values_count_from_the_lowest() -> None:
    """A mean near zero would make one group huge beside all others."""
    space = mlp_space(MLP())
    values = np.linspace(-1, 1, 20)
    values[space.groups[0].numbers] -= values[space.groups[0].numbers].mean() - 1e-9
    lifted = values - values.min()
    everything = np.ones(20, dtype=bool)
    np.testing.assert_allclose(normalise(space, values, everything), normalise(space, lifted, everything))
    assert score(space, {lambda of: values: 1.0}).values.max() < 10


def test_normalise() -> None:
    space = mlp_space(MLP())
    values = np.arange(1.0, 21.0)
    keep = np.ones(20, dtype=bool)
    keep[:6] = False
    grouped = normalise(space, values, keep)
    for group in space.groups:
        assert grouped[group.numbers][keep[group.numbers]].mean() == pytest.approx(1)
    assert normalise(space, values, keep, "space")[keep].mean() == pytest.approx(1)
    assert (normalise(space, np.zeros(20), keep) == 0).all()


def test_attributes_and_all_random_states_are_left_as_they_were() -> None:
    class Counting(MLP):
        calls = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls, self.last = self.calls + 1, x
            random.random(), np.random.rand()
            return super().forward(x)

    model = Counting()
    space = mlp_space(model)
    before, python, numpy = dict(model.__dict__), random.getstate(), np.random.get_state()[1].copy()
    score(space, "taylor1", [torch.randn(4, 6)], lambda model, x: model(x).square().mean())
    assert model.__dict__ == before and model.calls == 0
    assert random.getstate() == python and (np.random.get_state()[1] == numpy).all()


@pytest.mark.parametrize("criterion", ["taylor1", "activation", "hessian"])
@pytest.mark.parametrize(
    "loss_fn",
    [nn.CrossEntropyLoss(), nn.functional.cross_entropy, partial(nn.functional.cross_entropy, reduction="mean")],
    ids=["module", "function", "partial"],
)
def test_a_loss_that_torch_defines_is_given_outputs_and_labels(criterion: str, loss_fn: Any) -> None:
    space = mlp_space(MLP())
    batches = [(torch.randn(4, 6), torch.randint(0, 3, (4,))) for _ in range(2)]
    written = score(
        space, criterion, batches, lambda model, batch: nn.functional.cross_entropy(model(batch[0]), batch[1])
    )
    assert (score(space, criterion, batches, loss_fn).values == written.values).all()
    nested = [((x,), y) for x, y in batches]  # inputs as positional arguments
    assert (score(space, criterion, nested, loss_fn).values == written.values).all()


def test_a_loss_of_another_signature_is_told() -> None:
    space = mlp_space(MLP())
    for loss_fn, message in (
        (lambda output, target, weight: output, r"cannot be called as loss_fn\(model, batch\): missing a required"),
        (lambda output: output, "cannot be called as loss_fn"),
        (
            lambda output, target: nn.functional.cross_entropy(output, target),
            "failed with a TypeError.*is accepted too",
        ),
        (nn.MSELoss(), r"every batch must be a pair \(inputs, labels\), but one is a Tensor"),
        (3, "loss_fn=3 is not a function"),
    ):
        with pytest.raises(MethodError, match=message):
            score(space, "taylor1", [torch.randn(4, 6)], loss_fn)  # type: ignore[arg-type]


def test_scores_of_ones_own_print() -> None:
    assert "all units  1  1.5  2" in repr(Scores([1.0, 2.0], "mine"))  # type: ignore[arg-type]
