"""LHSPG: frozen weights with LoRA adapters, pruned together and merged."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from lora import Llama, LoraLinear, LoraStored, Stored, adapted, effective, lora_layers, merged
from lora_training import SCHEDULE, TOKENS, Job
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.core.space import Tie
from niwaki.errors import BudgetError, MethodError
from niwaki.methods.lora.pairs import find_pairs, merged_space
from niwaki.per_unit.index import unit_parameters
from niwaki.selection.budget import Budget
from niwaki.surgery.zero import zeroed


def removed(plan: niwaki.Plan, name: str, dim: int, size: int) -> list[int]:
    kept = plan.tensors.get(name, {}).get(dim, range(size))
    return sorted(set(range(size)) - set(kept))


def same_function(one: nn.Module, other: nn.Module, inputs: Tensor = TOKENS) -> float:
    one, other = one.eval(), other.eval()
    with torch.no_grad():
        y, z = (m(inputs) for m in (one, other))
    return float((y - z).abs().max() / z.abs().max())


# ---------------------------------------------------------------------------------------------------- search space


def test_adapters_lie_in_the_units_of_their_weights() -> None:
    space = Job().space
    tables = {(p.tensor, p.dim): p.units for p in space.dims}
    for name, _ in lora_layers(space.model):
        weight = f"{name}.base_layer.weight"
        assert np.array_equal(tables[weight, 0], tables[f"{name}.lora_B.default.weight", 0])
        assert np.array_equal(tables[weight, 1], tables[f"{name}.lora_A.default.weight", 1])
        rank = tables[f"{name}.lora_A.default.weight", 0]
        assert np.array_equal(rank, tables[f"{name}.lora_B.default.weight", 1])
        assert len(np.unique(rank)) == 2, "the rank has units of its own"


def test_merged_space_costs_what_the_merged_network_costs() -> None:
    """Against the search space of a network that never had adapters, for random choices of units."""
    torch.manual_seed(0)
    plain = niwaki.search_space(Llama(), TOKENS[:2])
    space = niwaki.search_space(adapted(Llama()), TOKENS[:2])
    view, number = merged_space(space, find_pairs(space))
    assert [g.name.replace(".base_layer", "") for g in view.groups] == [g.name for g in plain.groups]
    assert view.num_units == plain.num_units < space.num_units
    for seed in range(5):
        keep = np.random.default_rng(seed).random(view.num_units) < 0.6
        ours, theirs = view.cost_of(keep), plain.cost_of(keep)
        assert (ours.params, ours.macs, ours.memory) == (theirs.params, theirs.macs, theirs.memory)
    whole = {g.name: g for g in space.groups}
    for group in view.groups:
        assert np.array_equal(number[group.numbers], np.arange(space.num_units)[whole[group.name].numbers])
    assert not any("lora" in name for name in unit_parameters(view))


def test_what_is_tied_to_the_rank_stays() -> None:
    """The rank does not change, so neither can a width that must follow it."""
    space = Job().space
    names = [group.name for group in space.groups]
    rank, wide = names.index("blocks.1.up.lora_A.default"), names.index("blocks.1.gate.base_layer")
    tied = replace(space, ties=(*space.ties, Tie((rank, wide), (1, 10), 1)))
    view, _ = merged_space(tied, find_pairs(tied))
    number = [group.name for group in view.groups].index("blocks.1.gate.base_layer")
    assert view.least_units()[number] == view.groups[number].units == 20
    assert merged_space(space, find_pairs(space))[0].least_units()[number] == 1


# -------------------------------------------------------------------------------------------------------- the run


@pytest.mark.parametrize("vectorised", [True, False])
def test_after_the_run_units_are_zero_and_the_cut_is_exact(vectorised: bool) -> None:
    job = Job(vectorised=vectorised)
    before = job.loss().item()
    job.until(SCHEDULE.until)
    plan = job.method.plan()
    assert job.method.progress.phase == "done" and job.method.progress.params <= 0.7
    rows = 0
    for name, module in lora_layers(job.model):
        gone = removed(plan, f"{name}.base_layer.weight", 0, len(module.base_layer.weight))
        rows += len(gone)
        assert not effective(module)[gone].any() and not module.lora_B["default"].weight[gone].any()
        assert not module.base_layer.weight[gone].any()
    assert rows > 20
    small = niwaki.cut(job.model, plan)
    same = same_function(merged(copy.deepcopy(small)), merged(zeroed(job.model, plan)))
    assert same < 1e-12
    assert same_function(small, zeroed(job.model, plan)) < 1e-12
    assert niwaki.check(job.model, plan, TOKENS[:2]).holds
    assert same_function(small, job.model) < 1e-12, "what leaves is zero already, where units drive the network"
    merged_cost = niwaki.search_space(merged(small), TOKENS[:2]).cost()
    dense = niwaki.search_space(Llama().double(), TOKENS[:2]).cost()
    assert merged_cost.params <= 0.7 * dense.params
    assert plan.provenance["kept"]["params"] == merged_cost.params
    assert plan.provenance["dense"]["params"] == dense.params
    assert job.loss().item() < before


def test_zeros_stay_zero_afterwards() -> None:
    job = Job().until(SCHEDULE.until)
    plan = job.method.plan()
    job.until(SCHEDULE.until + 6)
    trained = 0
    for name, module in lora_layers(job.model):
        gone = removed(plan, f"{name}.base_layer.weight", 0, len(module.base_layer.weight))
        assert not effective(module)[gone].any()
        trained += int(module.lora_B["default"].weight.detach().abs().sum() > 0)
    assert trained == 14, "the adapters of what is left go on"


def test_fast_path_is_the_plain_loop() -> None:
    jobs = [Job(vectorised=vectorised, epsilon=0.2) for vectorised in (True, False)]
    for _ in range(SCHEDULE.until + 2):
        for job in jobs:
            job.step()
        fast, plain = (job.weights() for job in jobs)
        for name, value in fast.items():
            torch.testing.assert_close(value, plain[name], rtol=1e-10, atol=1e-12)
    assert jobs[0].method.plan().to_json() == jobs[1].method.plan().to_json()


@pytest.mark.parametrize("penalty", [None, 0.72])
def test_one_step_is_the_algorithm_box(penalty: float | None) -> None:
    """On the first step of the second period, in plain arithmetic: both of its units and of others."""
    job = Job(penalty=penalty, protect=0, epsilon=0.1).until(7)
    status, view = job.method.selector.status, job.method.space
    before = {name: effective(module) for name, module in lora_layers(job.model)}
    free = Job(penalty=penalty, protect=0, epsilon=0.1).until(7)
    free.method.detach()
    free.step()  # what the optimizer alone does
    job.step()
    after = {name: effective(module) for name, module in lora_layers(free.model)}
    seen, ended = 0, 0
    for group in view.groups:
        for unit in range(group.units):
            if status[group.first + unit] != 1:
                continue
            pieces = [
                (s.tensor.removesuffix(".base_layer.weight"), s.index[unit]) for s in group.slices if s.role.produces
            ]
            if any(name not in before for name, _ in pieces):
                continue  # the residual stream, whose embedding is not a pair
            x = torch.cat([before[name][rows].flatten() for name, rows in pieces])
            y = torch.cat([after[name][rows].flatten() for name, rows in pieces])
            length = x.norm() / 4 if penalty is None else penalty
            trial = y - length * x / x.norm()
            if trial @ x < 0.1 * x @ x:
                trial, ended = torch.zeros_like(trial), ended + 1
            now = torch.cat(
                [job.model.get_submodule(name).base_layer.weight[rows].flatten() for name, rows in pieces]  # type: ignore
            )
            torch.testing.assert_close(now, trial, rtol=1e-10, atol=1e-13)
            for name, rows in pieces:
                assert not job.model.get_submodule(name).lora_B["default"].weight[rows].any()  # type: ignore
            seen += 1
    assert seen > 3
    assert penalty is None or ended, "a penalty longer than some unit ends it"


def test_what_stays_is_untouched_between_merges() -> None:
    """Frozen to the bit; its A and B take the bare optimizer's step."""
    job = Job().until(SCHEDULE.start)
    borders = job.method.selector.scores.timeline.borders
    for first, last in zip(borders, borders[1:], strict=False):
        job.until(first)
        begin, kept = job.weights(), job.method.selector.status == 0
        tables = {p.tensor: p.units for p in job.method.space.dims if p.dim == 0 and p.role.zeroed_by_method}
        while job.steps < last - 1:
            job.step()
            now = job.weights()
            for name, units in tables.items():
                stays = np.append(kept, True)[units].all(axis=1)
                assert stays.any() and torch.equal(now[name][stays], begin[name][stays])
        job.until(last)
        moved = [not torch.equal(job.weights()[name], begin[name]) for name in tables if "base_layer" in name]
        assert all(moved), "merged at the end"
        assert all(not module.lora_B["default"].weight.any() for _, module in lora_layers(job.model))


def test_a_merge_changes_no_output() -> None:
    job = Job().until(2)
    twin = copy.deepcopy(job.model)
    for pair in find_pairs(job.space):
        assert pair.b.any()
        pair.merge()
        assert not pair.b.any()
    assert same_function(job.model, twin) < 1e-13


def test_before_the_start_it_is_the_bare_optimizer() -> None:
    job, bare = Job(), Job()
    bare.method.detach()
    for _ in range(SCHEDULE.start - 1):
        job.step()
        bare.step()
    for name, value in job.weights().items():
        assert torch.equal(value, bare.weights()[name])


def test_protected_groups_lose_nothing() -> None:
    """The most sensitive are protected: found once more by hand."""
    job = Job(protect=0.4).until(SCHEDULE.until)
    protected = job.method.selector.scores._protected
    assert protected is not None and protected.sum() == 2
    plan = job.method.plan()
    names = [g.name for g in job.method.space.groups]
    for name, safe in zip(names, protected, strict=True):
        assert (len(plan.kept[name]) == plan.units[name]) or not safe
    other = Job(protect=0.4).until(SCHEDULE.start - 1)
    growth = []
    other.method.detach()
    other.step()
    view, parameters = other.method.space, dict(other.model.named_parameters())
    for pair in other.method.update._pairs:
        pair.merge()
    saliency = other.method.selector.scores.saliency(SCHEDULE.start, np.ones(view.num_units, dtype=bool))
    reference = other.loss().item()
    kept = other.weights()
    for group in view.groups:
        losses = []
        for share in (0.25, 0.5, 0.75):
            for unit in np.argsort(saliency[group.numbers])[: int(share * group.units)]:
                for piece in group.slices:
                    if piece.role.zeroed_by_method:
                        parameters[piece.tensor].data.index_fill_(piece.dim, torch.from_numpy(piece.index[unit]), 0)
            losses.append(max(other.loss().item() - reference, 0))
            other.model.load_state_dict(kept)
        growth.append(np.mean(losses))
    assert set(np.argsort(growth)[-2:]) == set(np.flatnonzero(protected))


# --------------------------------------------------------------------------------------------------- other layers


class Sigmoid(nn.Module):
    """Layers beside which a zero unit sends out a half: their readers are driven too. One is stored as [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.one = LoraLinear(nn.Linear(6, 9))
        self.two = LoraStored(Stored(9, 8))
        self.three = LoraLinear(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.three(F.relu(self.two(torch.sigmoid(self.one(x)))))


@pytest.mark.parametrize("vectorised", [True, False])
def test_readers_and_transposed_weights(vectorised: bool) -> None:
    """Where zero sends out a half, the readers' columns go to zero too: in W and in A."""
    model = Sigmoid().double()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora" in name)
    for _, module in lora_layers(model):
        nn.init.normal_(module.lora_B["default"].weight)
    x, y = torch.randn(32, 6).double(), torch.randn(32, 3).double()
    space = niwaki.search_space(model, x[:2])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)

    def loss() -> Tensor:
        return F.mse_loss(model(x), y)

    schedule = niwaki.Schedule(start=2, until=12, periods=2)
    method = niwaki.LHSPG(space, optimizer, Budget(units=0.5), schedule, loss=loss, protect=0, vectorised=vectorised)
    for _ in range(14):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    plan = method.plan()
    gone = removed(plan, "two.base_layer.weight", 0, 9)
    assert gone and not effective(model.two)[gone].any() and not model.two.lora_A["default"].weight[:, gone].any()
    out = removed(plan, "two.base_layer.weight", 1, 8)
    assert out and not effective(model.two)[:, out].any() and not model.two.lora_B["default"].weight[out].any()
    assert same_function(niwaki.cut(model, plan), model, x) < 1e-12


class Widened(nn.Linear):
    """A layer that computes in the precision of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))


def test_half_precision_weights_beside_wider_adapters() -> None:
    """As peft keeps them. A merge rounds; zeros are exact."""
    model = adapted(Llama(layers=1))
    for _, module in lora_layers(model):
        module.base_layer.to(torch.bfloat16)
        module.base_layer.__class__ = Widened
    job = Job(Budget(params=0.8), model, schedule=niwaki.Schedule(start=2, until=8, periods=2)).until(9)
    plan = job.method.plan()
    for name, module in lora_layers(job.model):
        gone = removed(plan, f"{name}.base_layer.weight", 0, len(module.base_layer.weight))
        assert not module.base_layer.weight[gone].any() and not module.lora_B["default"].weight[gone].any()
        assert module.base_layer.weight.dtype == torch.bfloat16


# --------------------------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("stop", [1, 3, 5, 7, 16])
def test_resume_is_bit_identical(stop: int, tmp_path: Any) -> None:
    whole = Job(protect=0.2).until(stop)
    torch.save({"model": whole.model.state_dict(), "optimizer": whole.optimizer.state_dict()}, tmp_path / "c.pt")
    resumed = Job(protect=0.2)
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    resumed.model.load_state_dict(saved["model"])
    resumed.optimizer.load_state_dict(saved["optimizer"])
    resumed.steps = stop
    assert repr(resumed.method) == repr(whole.method)
    for job in (whole, resumed):
        job.until(18)
    for name, value in whole.weights().items():
        assert torch.equal(value, resumed.weights()[name]), name
    assert resumed.method.plan().to_json() == whole.method.plan().to_json()


def test_damaged_and_foreign_states_are_refused() -> None:
    job = Job().until(5)
    good = job.optimizer.state_dict()
    for key, value, told in (
        ("protected", torch.zeros(2, dtype=torch.bool), "its choice of protected groups is not 5 truth values"),
        ("status", torch.zeros(3, dtype=torch.int8), "its status is not"),
    ):
        bad = copy.deepcopy(good)
        bad["niwaki"]["state"][key] = value
        with pytest.raises(MethodError, match=told):
            Job().optimizer.load_state_dict(bad)
    with pytest.raises(MethodError, match=r"protect = 0\.1, but here it is 0\.3"):
        Job(protect=0.3).optimizer.load_state_dict(good)


# --------------------------------------------------------------------------------------------------------- errors


def _without_adapters() -> Job:
    return Job(model=Llama().double())


def _on_the_head_only() -> Job:
    return Job(model=adapted(Llama(), names=("head",)))


def _trained_weight() -> Job:
    model = adapted(Llama())
    model.blocks[0].up.base_layer.weight.requires_grad_(True)  # type: ignore[union-attr, index, operator]
    return Job(model=model)


def _frozen_adapter() -> Job:
    model = adapted(Llama())
    model.blocks[1].up.lora_B.requires_grad_(False)  # type: ignore[union-attr, index, operator]
    return Job(model=model)


def _not_in_the_optimizer() -> Job:
    model = adapted(Llama())
    space = niwaki.search_space(model, TOKENS[:2])
    some = torch.optim.AdamW([p for n, p in model.named_parameters() if "lora" in n and "blocks.1.v" not in n])
    niwaki.LHSPG(space, some, Budget(params=0.9), SCHEDULE, loss=lambda: model(TOKENS).sum())
    raise AssertionError


def _edited(change: Callable[[LoraLinear], object]) -> Callable[[], Job]:
    def build() -> Job:
        model = adapted(Llama())
        change(model.blocks[1].up)  # type: ignore[arg-type, index, union-attr]
        return Job(model=model)

    return build


def _two_adapters(layer: LoraLinear) -> None:
    for part in (layer.lora_A, layer.lora_B):
        part["other"] = copy.deepcopy(part["default"])


def _bias(layer: LoraLinear) -> None:
    layer.lora_B["default"].bias = nn.Parameter(torch.zeros(20))


def _merged(layer: LoraLinear) -> None:
    layer.merged_adapters = ["default"]  # type: ignore[assignment]


def _dora(layer: LoraLinear) -> None:
    layer.lora_magnitude_vector = nn.ModuleDict({"default": nn.Linear(1, 1)})


def _scaling(layer: LoraLinear) -> None:
    layer.scaling = {"default": torch.tensor(2.0)}  # type: ignore[dict-item]


def _half(layer: LoraLinear) -> None:
    layer.base_layer = nn.Bilinear(16, 1, 20)
    layer.forward = lambda x: F.linear(x, layer.base_layer.weight[:, :, 0])  # type: ignore


def _adapter_disabled(layer: LoraLinear) -> None:
    layer.forward = layer.base_layer.forward  # type: ignore[method-assign]


def _tied() -> Job:
    model = adapted(Llama())
    blocks: Any = model.blocks
    blocks[1].up.base_layer.weight = blocks[0].up.base_layer.weight
    return Job(model=model)


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (_without_adapters, r"The model has no LoRA layers: .* Add adapters before you build the search space, peft\."),
        (_on_the_head_only, r"None of the 1 LoRA layers, first 'head\.base_layer\.weight', computes a unit that can"),
        (_trained_weight, r"'blocks\.0\.up\.base_layer\.weight' has an adapter and trains as well, .* Freeze it"),
        (_frozen_adapter, r"'blocks\.1\.up\.lora_B\.default\.weight' is frozen, so the adapter of .* cannot train\."),
        (_not_in_the_optimizer, r"'blocks\.1\.v\.lora_A\.default\.weight' is not among the optimizer's parameters"),
        (_edited(_two_adapters), r"The LoRA layer 'blocks\.1\.up' cannot be pruned: it has 2 adapters: keep the one"),
        (_edited(_bias), r"'blocks\.1\.up' cannot be pruned: lora_A or lora_B has more than a weight \(lora_bias\)\."),
        (_edited(_merged), r"'blocks\.1\.up' cannot be pruned: its adapter is merged already: unmerge it first\."),
        (_edited(_dora), r"it has the parameters 'lora_magnitude_vector' too, so that its weight is not W \+ s B A"),
        (_edited(_scaling), r"'blocks\.1\.up' cannot be pruned: it has no number scaling\['default'\]\."),
        (_edited(_half), r"cannot be pruned: its weight is \[20, 16, 1\] of torch\.float32, and only matrices"),
        (_edited(_adapter_disabled), r"do not belong to the same units, .* with its adapters enabled"),
        (_tied, r"The weight 'blocks\.0\.up\.base_layer\.weight' has an adapter and is used by another module as well"),
        (
            lambda: Job(loss=None),
            r"LHSPG measures how the loss grows when parts of a group are zero, but knows no loss",
        ),
        (lambda: Job(loss=None, protect=0), r"LHSPG measures the criterion 'cosine', but knows no loss\. Pass loss="),
        (lambda: Job(loss=3), r"loss=3 is not a function"),
        (
            lambda: Job(protect=1),
            r"protect=1 must be a finite number, from 0 to below 1: it is the share of the groups",
        ),
        (lambda: Job(epsilon=-1), r"epsilon=-1 must be a finite number, from 0 to below 1"),
        (lambda: Job(penalty=-1), r"penalty=-1 must be a finite number, 0 or more: it is the length that a unit loses"),
    ],
)
def test_errors_are_sentences(build: Callable[[], Job], told: str) -> None:
    with pytest.raises(MethodError, match=told):
        build()


@pytest.mark.parametrize(("round_to", "coarse"), [(10, True), (1, False)])
def test_a_plan_says_where_steps_are_coarse(round_to: int, coarse: bool) -> None:
    """As those of other methods do, in the costs of the merged network; not before there is a choice to judge."""
    job = Job(Budget(params=0.8, round_to=round_to), protect=0, schedule=niwaki.Schedule(start=1, until=3, periods=1))
    with pytest.warns(UserWarning, match="has not reached the end of its schedule"):
        assert "tight" not in job.until(2).method.plan().provenance
    told = job.until(3).method.plan().provenance.get("tight", "")
    assert ("The finest possible step" in told) == coarse
    assert not coarse or f"with a limit of {job.method.selector.target.limits['params']:,.0f}." in told


def test_without_a_loss_magnitudes_will_do() -> None:
    job = Job(loss=None, protect=0, criteria={"magnitude": 1.0}).until(SCHEDULE.until)
    assert job.method.progress.params <= 0.7


def test_a_budget_that_what_is_protected_makes_impossible() -> None:
    job = Job(Budget(params=0.3), protect=0.8)
    with pytest.raises(BudgetError, match=r"With the most sensitive groups protected \(.*\) there is too little to"):
        job.until(SCHEDULE.start)
    assert all(module.base_layer.weight.any(dim=1).all() for _, module in lora_layers(job.model))


def test_a_latency_has_to_be_timed() -> None:
    with pytest.raises(BudgetError, match=r"search space of a copy whose adapters are merged, .* merged.cost\(\).macs"):
        Job(Budget(latency=0.5))
    with pytest.raises(
        BudgetError, match=r"Or train in a space that predicts the latency: niwaki.timed\(space, x\)\.$"
    ):
        Job(Budget(latency=0.5))
