"""Masks that are learnt without chance: within budgets, exact when they are folded and cut."""

from __future__ import annotations

import copy
import math
import re
import warnings
from typing import Any

import pytest
import torch
from four_networks import NETWORKS, logits, loss_fn, macs
from torch import Tensor, nn

import niwaki
from niwaki.core.precision import doubled
from niwaki.errors import BudgetError, MethodError, ShrinkError
from niwaki.masks.deterministic import DeterministicTraining
from niwaki.masks.divergence import divergence
from niwaki.masks.folding import fold_gates_
from niwaki.masks.latents import Latents
from niwaki.per_unit.unit_gates import UnitGates
from niwaki.selection.budget import Budget
from niwaki.surgery.zero import zeroed


def trained() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A perceptron that has learnt a little, and what it has learnt."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 4))
    x, y = torch.randn(64, 8), torch.randint(0, 4, (64,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model, x, y


LOSS = nn.CrossEntropyLoss()


def learnt(share: float = 0.5, steps: int = 40, **options: Any) -> tuple[nn.Module, niwaki.DDPMasks, niwaki.Plan]:
    model, x, y = trained()
    masks = niwaki.DDPMasks([(x, y)], LOSS, steps=steps, **options)
    return model, masks, niwaki.choose(niwaki.search_space(model, x[:1]), masks, Budget(macs=share))


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_gated_folded_and_cut_compute_the_same(name: str) -> None:
    """In double precision; the MACs are those that the plan states."""
    torch.manual_seed(0)
    build, inputs = NETWORKS[name]
    model = build()
    model.train()
    for seed in range(3) if name != "llama" else ():  # statistics of norms that are not 0 and 1
        model(inputs(seed))
    model.eval()
    space = niwaki.search_space(model, inputs(0)[:1])
    masks = niwaki.DDPMasks([inputs(seed) for seed in (1, 2)], loss_fn, steps=6, lr=0.2)
    plan = niwaki.choose(space, masks, Budget(macs=0.5))
    model.double()
    keep, x = torch.from_numpy(space.keep_of(plan)), inputs(3)
    x = x.double() if x.is_floating_point() else x
    scales = masks.scales.double()
    assert not keep.all() and float((scales[keep] - 1).abs().max()) > 0.05 and bool((scales[~keep] == 1).all())
    gates = UnitGates(space)
    with torch.no_grad(), doubled():
        whole = gates.value(scales, lambda model: logits(model, x))
        masked = gates.value(scales * keep, lambda model: logits(model, x))
        dense = logits(model, x)
        assert masks.fold_() is model
        folded, zero, cut = logits(model, x), logits(zeroed(model, plan), x), logits(niwaki.cut(model, plan), x)
    size = float(dense.abs().max())
    assert float((whole - dense).abs().max()) > 1e-6 * size
    assert float((folded - whole).abs().max()) <= 1e-12 * size
    assert max(float((found - masked).abs().max()) for found in (zero, cut)) <= 1e-10 * size
    assert space.cost(plan).macs <= 0.5 * space.cost().macs
    if name in ("resnet", "mobilenet_v2"):  # torch does not count the attention that it computes on a CPU
        assert macs(niwaki.cut(model, plan), x) == space.cost(plan).macs


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_mask_meets_every_budget_from_below(share: float) -> None:
    """As it is chosen; before, that of the latents themselves is near."""
    _, masks, plan = learnt(share, steps=160)
    kept, own = plan.provenance["kept"]["macs"] / plan.provenance["dense"]["macs"], masks.settings()["own"]["macs"]
    assert share - 0.005 <= kept <= share
    assert abs(own - share) <= 0.06


@pytest.mark.parametrize("first", [1.0, 0.02])
def test_latents_reach_a_budget_from_above_and_from_below(first: float) -> None:
    model, x, y = trained()
    space = niwaki.search_space(model, x[:1])
    latents = Latents(space)
    training = DeterministicTraining(space, latents, Budget(macs=0.4).absolute(space), 200)
    with torch.no_grad():
        latents.values.mul_(first)
    for step in range(150):
        training.step(lambda model: nn.functional.cross_entropy(model(x), y), step / 200)
    kept = latents.gates().hard.detach().numpy() > 0.5
    assert abs(space.cost_of(kept).macs / space.cost().macs - 0.4) <= 0.05
    undecided = (latents.retentions() > 0.05) & (latents.retentions() < 0.95)
    assert float(undecided.double().mean()) < 0.25


def test_it_is_better_than_what_scores_find() -> None:
    model, masks, plan = learnt(0.2, steps=120)
    _, x, y = trained()
    space = niwaki.search_space(model, x[:1])
    batches = [(x, y)]
    others = [
        niwaki.choose(space, niwaki.score(space, criterion, batches, LOSS), Budget(macs=0.2))
        for criterion in ("magnitude", "taylor1", "fisher")
    ]
    with torch.no_grad():
        with pytest.warns(UserWarning, match="The plan was learnt together with scales"):
            unfolded = float(LOSS(niwaki.cut(model, plan)(x), y))
        scored = [float(LOSS(niwaki.cut(model, other)(x), y)) for other in others]
        folded = float(LOSS(niwaki.cut(masks.fold_(), plan)(x), y))
    assert folded < unfolded < min(scored)


def test_no_chance_and_nothing_touched() -> None:
    model, x, y = trained()
    LOSS(model(x), y).backward()
    before = copy.deepcopy(model.state_dict())
    gradients = [
        (parameter.grad, parameter.grad.clone()) for parameter in model.parameters() if parameter.grad is not None
    ]
    space, random = niwaki.search_space(model, x[:1]), torch.get_rng_state()
    made = [niwaki.DDPMasks([(x, y)], LOSS, steps=10) for _ in range(2)]
    model.train()
    plans = [niwaki.choose(space, masks, Budget(macs=0.5)) for masks in made]
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(gradient, value) for gradient, value in gradients)
    assert plans[0].to_json() == plans[1].to_json() and torch.equal(made[0].scales, made[1].scales)
    again = niwaki.choose(space, made[0], Budget(macs=0.5))
    assert again.to_json() == plans[0].to_json()


@pytest.mark.parametrize(("weight", "calls"), [(2.0, 2), (0.0, 1)])
def test_forward_passes_per_step(weight: float, calls: int) -> None:
    model, x, y = trained()
    space, steps, counts = niwaki.search_space(model, x[:1]), 8, []
    seen: list[int] = []
    masks = niwaki.DDPMasks(
        [(x, y)],
        LOSS,
        steps=steps,
        divergence=weight,
        progress=lambda found: counts.append((found.step, found.steps, len(seen))),
    )
    handle = model.register_forward_hook(lambda *_: seen.append(1))
    niwaki.choose(space, masks, Budget(macs=0.5))
    handle.remove()
    assert [(step, of) for step, of, _ in counts] == [(step + 1, steps) for step in range(steps)]
    assert {late - early for (_, _, early), (_, _, late) in zip(counts, counts[1:], strict=False)} == {calls}


def test_training_resumes_to_the_same_bits_in_both_phases() -> None:
    def fresh() -> DeterministicTraining:
        model, _, _ = trained()
        space = niwaki.search_space(model, torch.randn(1, 8))
        return DeterministicTraining(space, Latents(space), Budget(macs=0.5).absolute(space), 12)

    _, x, y = trained()

    def run(training: DeterministicTraining, first: int, last: int) -> DeterministicTraining:
        for step in range(first, last):
            if step == 9:
                training.freeze(training.worth() >= sorted(training.worth())[100])
            training.step(lambda model: nn.functional.cross_entropy(model(x), y), step / 12)
        return training

    whole = run(fresh(), 0, 12)
    for stop in (4, 10):
        state, again = copy.deepcopy(run(fresh(), 0, stop).state()), fresh()
        again.check_state(state)
        again.restore(state)
        run(again, stop, 12)
        assert again.frozen and torch.equal(again.latents.values, whole.latents.values)
        assert torch.equal(again.gate_values(), whole.gate_values())
    other = niwaki.search_space(nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 2)), torch.randn(1, 8))
    small = DeterministicTraining(other, Latents(other), {"params": 40.0}, 12)
    with pytest.raises(ValueError, match="its latents are those of another search space"):
        small.check_state(whole.state())


@pytest.mark.parametrize(
    "build",
    [
        lambda parameters: torch.optim.SGD(parameters, lr=0.0, momentum=0.9),
        lambda parameters: torch.optim.AdamW(parameters, lr=0.0, amsgrad=True),
        lambda parameters: torch.optim.RMSprop(parameters, lr=0.0, centered=True),
    ],
)
def test_moments_follow_the_weights(build: Any) -> None:
    """Under a gate f the gradient by a weight is f times that by the folded weight: after the fold, memories are those
    of a network that had the folded weights all the time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    x = torch.randn(7, 4, dtype=torch.float64)
    space = niwaki.search_space(model, x)
    gates, values = UnitGates(space), torch.rand(space.num_units, dtype=torch.float64) + 0.5
    folded = copy.deepcopy(model)
    theirs = niwaki.search_space(folded, x)
    fold_gates_(theirs, UnitGates(theirs), values)
    optimizers = [build(network.parameters()) for network in (model, folded)]
    parts = dict(model.named_parameters())
    factors: dict[str, Tensor] = {name: torch.ones_like(value) for name, value in parts.items()}
    for name, dim, factor in gates.factors(values):
        shape = [1] * parts[name].dim()
        shape[dim] = -1
        factors[name] = factors[name] * factor.view(shape)
    for seed in range(3):
        batch = torch.randn(7, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        folded.zero_grad()
        folded(batch).square().sum().backward()
        for (name, mine), their in zip(parts.items(), folded.parameters(), strict=True):
            assert their.grad is not None
            mine.grad = factors[name] * their.grad
        for optimizer in optimizers:
            optimizer.step()
    fold_gates_(space, gates, values, optimizers[0])
    for mine, their in zip(model.parameters(), folded.parameters(), strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-12, atol=0)
        for key, value in optimizers[1].state[their].items():
            torch.testing.assert_close(optimizers[0].state[mine][key], value, rtol=1e-10, atol=1e-14)


def test_what_cannot_follow_is_refused_before_anything_changes() -> None:
    model, masks, _ = learnt(steps=8, lr=0.3)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(torch.randn(3, 8)).sum().backward()
    optimizer.step()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        ShrinkError, match=r"keeps averages over dimension 1 of '2\.weight', whose positions are scaled"
    ):
        masks.fold_(optimizer)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    masks.fold_()
    with pytest.raises(MethodError, match="The scales of this choice are in the weights of the model already"):
        masks.fold_()
    gates = UnitGates(niwaki.search_space(model, torch.randn(1, 8)))
    with pytest.raises(MethodError, match="A unit is scaled by what is not a number above 0"):
        fold_gates_(niwaki.search_space(model, torch.randn(1, 8)), gates, torch.zeros(256))


def test_a_model_that_has_been_cut_since_is_not_scaled_in_part() -> None:
    model, masks, plan = learnt(steps=8)
    with pytest.warns(UserWarning, match="^The plan was learnt together with scales"):
        niwaki.shrink(model, plan, torch.optim.SGD(model.parameters(), lr=0.1))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(MethodError, match=r"has the shape \[\d+, \d+\] now, and scales were learnt for other sizes"):
        masks.fold_()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_budget_that_is_met_already_removes_nothing() -> None:
    _, _, plan = learnt(1.0, steps=8)
    assert plan.provenance["kept"] == plan.provenance["dense"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 3}, "steps=3 must be a whole number, 4 or more."),
        (
            {"divergence": -1.0},
            "divergence=-1.0 must be a number, 0 or more: it weighs the outputs of the dense network.",
        ),
        ({"lr": 0}, "lr=0 must be a number above 0."),
        ({"outputs": "logits"}, "outputs='logits' is not a function."),
        ({"batches": 5}, "batches=5 cannot be iterated: "),
        ({"batches": iter([1])}, "batches is a list_iterator, which is at its end after one pass"),
    ],
)
def test_arguments_that_make_no_sense(options: dict[str, Any], says: str) -> None:
    given = {"batches": [1], "loss_fn": LOSS} | options
    with pytest.raises(MethodError, match=f"^{re.escape(says)}"):
        niwaki.DDPMasks(**given)
    with pytest.raises(
        MethodError, match="^No mask has been learnt yet: pass this to niwaki.choose in place of scores"
    ):
        niwaki.DDPMasks([1], LOSS).fold_()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"compare": "space"}, "compare= is for scores, and a mask that is learnt has none. Leave it out."),
        ({"remove": "both"}, "A mask that is learnt keeps units, and remove='both' asks for whole structures."),
        (
            {"budget": Budget(latency=0.5)},
            "A mask that is learnt follows limits in macs, params, units, memory, not in latency. First find the MACs",
        ),
        ({"budget": Budget(macs=0.0005)}, "The budget macs <= 8 (0.0% of 17,920) cannot be met: with every group at"),
        ({"budget": 0.5}, "budget=0.5 is not a budget. Name its measure: niwaki.Budget(macs=0.5)."),
    ],
)
def test_what_a_learnt_mask_cannot_do(options: dict[str, Any], says: str) -> None:
    model, x, y = trained()
    given = {"budget": Budget(macs=0.5)} | options
    with pytest.raises(BudgetError, match=f"^{re.escape(says)}"):
        niwaki.choose(niwaki.search_space(model, x[:1]), niwaki.DDPMasks([(x, y)], LOSS), **given)


@pytest.mark.parametrize(
    ("batches", "loss", "says"),
    [
        ([], LOSS, "batches gave no batch in pass 2. Pass what can be iterated again and again"),
        ([1], lambda model, _: 1.0, "loss_fn must return the scalar loss of a batch, but returned a float."),
        ([1], lambda model, _: model(torch.full((1, 8), math.nan)).sum(), "The loss of a batch under a mask is nan"),
        ([1], lambda model, _: model[4].bias.sum(), "The loss that loss_fn returned does not depend on any unit"),
        (
            [1],
            lambda model, _: model[4](model[:4](torch.ones(1, 8))).sum(),
            "loss_fn does not call the model itself, so that the outputs of two networks cannot be compared. Pass outp",
        ),
    ],
)
def test_batches_that_teach_nothing(batches: Any, loss: Any, says: str) -> None:
    """The model is as it was."""
    model, x, _ = trained()
    before, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with pytest.raises(MethodError, match=f"^{re.escape(says)}"):
        niwaki.choose(niwaki.search_space(model, x[:1]), niwaki.DDPMasks(batches, loss), Budget(macs=0.5))
    assert torch.equal(torch.get_rng_state(), random) and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_divergence_of_outputs() -> None:
    """The mean over positions of KL(p || q)."""
    torch.manual_seed(0)
    p, q = torch.randn(3, 5, 7), torch.randn(3, 5, 7)
    expected = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=one) for one in (p, q)))
    torch.testing.assert_close(divergence([p], [q], None), expected.mean())
    torch.testing.assert_close(
        divergence([{"logits": p}, {"logits": q}], [{"logits": q}] * 2, None), expected.mean() / 2
    )
    torch.testing.assert_close(divergence([(0, p)], [(0, q)], lambda output: output[1]), expected.mean())
    maps = [one.movedim(-1, 1).unsqueeze(-1) for one in (p, q)]
    torch.testing.assert_close(divergence([maps[0]], [maps[1]], None), expected.mean())
    with pytest.raises(MethodError, match=r"^The model returns a tuple without logits. Pass outputs=, a function from"):
        divergence([(p, p)], [(q, q)], None)
    with pytest.raises(MethodError, match="^loss_fn does not call the model equally often each time"):
        divergence([p], [q, q], None)


def test_a_cut_without_the_scales_is_warned_of() -> None:
    """By plans that were stored, too; not once they are folded, and not after weights have trained on."""
    model, masks, plan = learnt(steps=12)
    plan = niwaki.Plan.from_json(plan.to_json())
    assert [edit.kind for edit in plan.edits].count("scaled before") == 1 and "with its scales, and to" in str(plan)
    says = (
        r"^The plan was learnt together with scales of the units that stay, and '\d\.weight' is as it was without them"
    )
    with pytest.warns(UserWarning, match=says):
        small = niwaki.cut(model, plan)
    with pytest.warns(UserWarning, match=says):
        niwaki.shrink(copy.deepcopy(model), plan)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folded = niwaki.cut(masks.fold_(), plan)
        niwaki.cut(folded, plan), niwaki.cut(small, plan)
        assert niwaki.check(model, plan, torch.randn(3, 8)).holds
