"""With which others methods compare each unit: both engines agree, and what a training chooses follows from it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from every_method import training
from lora_training import Job
from optimizers import Calls, same
from torch import Tensor, nn
from training import SCHEDULE, Training, adamw, sgd

import niwaki
from niwaki.criteria import criteria, normalise, score
from niwaki.errors import MethodError
from niwaki.methods import CRIC, DHSPG, HESSO
from niwaki.per_unit.fast import FastUnits
from niwaki.per_unit.plain import PlainUnits
from niwaki.selection import select
from niwaki.selection.budget import Budget

COMPARE = ("group", "layer", "isomorphic", "space")
ADDS_UP = [one for one in criteria().values() if one.adds_up]


@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
def test_plain_and_vectorised_agree(net: str, compare: str) -> None:
    plain, fast = (
        Training(net, adamw, Budget(macs=0.4), compare=compare, vectorised=vectorised) for vectorised in (False, True)
    )
    for _ in range(SCHEDULE.until + 1):
        plain.step()
        fast.step()
        same(plain.parameters(), fast.parameters())
    assert (plain.marked() == fast.marked()).all() and fast.marked().any()


@pytest.mark.parametrize("net", ["mlp", "conv", "overlap"])
def test_the_engines_agree_layer_by_layer_on_every_criterion(net: str) -> None:
    assert len(ADDS_UP) >= 8
    run = Training(net, sgd, dtype=torch.float64)
    engines = [kind(run.space, run.optimizer) for kind in (PlainUnits, FastUnits)]
    for engine in engines:
        engine.remember()
    run.step()
    counted = torch.arange(run.space.num_units) % 3 > 0
    with torch.no_grad():  # a layer of zeros
        next(run.model.children()).weight.zero_()
    sizes = torch.linspace(1, 3, run.space.num_units, dtype=torch.float64)
    for size in (None, sizes):
        with torch.no_grad():
            plain, fast = (engine.values(ADDS_UP, 3, size, counted) for engine in engines)
        torch.testing.assert_close(plain, fast, rtol=1e-9, atol=1e-12)
        whole = engines[1].values(ADDS_UP, 3, size)
        assert not torch.allclose(whole, fast)


def test_windows_hold_what_score_says_layer_by_layer() -> None:
    names = ["magnitude", "magnitude_l1", "average_magnitude", "lamp", "random"]
    run = Training("conv", sgd, Budget(macs=0.4), criteria=dict.fromkeys(names, 1.0), compare="layer")
    run.step(SCHEDULE.start - 2)
    assert run.method is not None
    sampled = run.method.selector.scores.sampler.sample()
    for row, name in zip(sampled, names, strict=True):
        expected = torch.from_numpy(score(run.space, name, compare="layer").values).to(row)
        torch.testing.assert_close(row, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("compare", COMPARE)
def test_the_first_portion_is_chosen_so(compare: str) -> None:
    """Among units of unlike scales: those of the stream are large."""
    run = Training("conv", sgd, Budget(units=0.5), criteria={"magnitude": 1.0}, window=1, compare=compare)
    with torch.no_grad():
        run.model.stem.weight.mul_(20)
    assert run.method is not None
    portions = run.method.selector
    step = portions.scores.timeline.borders[0]
    run.step(step)
    everything = np.ones(run.space.num_units, dtype=bool)
    values = score(run.space, "magnitude", compare=compare).values
    values = normalise(run.space, values, everything, compare)
    last = select(run.space, values, portions.target.limits, compare=compare)
    dense, share = run.space.num_units, portions.schedule.portion(SCHEDULE.periods)
    limits = {"units": dense - (dense - portions.target.limits["units"]) * share}
    keep = select(run.space, values, limits, compare=compare, staying=last)
    assert (portions.removed() == ~keep).all() and (~keep).any()
    if compare == "space":
        otherwise = select(run.space, values, limits, staying=select(run.space, values, portions.target.limits))
        assert (keep != otherwise).any() and (keep != select(run.space, values, limits, staying=last)).any()


def test_what_leaves_weighs_on_no_mean_of_a_layer() -> None:
    """Every unit of the network lies in one layer, whose mean is that of its units that are not about to leave."""
    run = Training("mlp", sgd, Budget(macs=0.4), criteria={"magnitude": 1.0}, compare="layer")
    assert run.method is not None
    portions = run.method.selector
    run.step(portions.scores.timeline.borders[1] - 1)
    (row,) = portions.scores.sampler.sample().numpy()
    staying = ~portions.removed()
    assert not staying.all()
    for group in run.space.groups:
        assert row[group.numbers][staying[group.numbers]].mean() == pytest.approx(1)
        assert row[group.numbers].mean() < 1


def test_choices_differ() -> None:
    """One layer of the stream is a hundred times larger than all others, and one group of a network than the other."""
    kept = {}
    for compare in COMPARE:
        run = Training("conv", sgd, Budget(units=0.5), criteria={"magnitude": 1.0}, compare=compare)
        with torch.no_grad():
            run.model.stem.weight.mul_(100)
        run.step(SCHEDULE.until)
        kept[compare] = run.marked()
        assert run.method is not None and run.method.plan().provenance.get("compare", "group") == compare
    assert (kept["group"] != kept["layer"]).any() and (kept["group"] != kept["space"]).any()
    stream = slice(0, 8)
    assert kept["space"][stream].sum() < kept["group"][stream].sum(), "the large units stay"


class Joined(nn.Module):
    """Two layers side by side, joined and normed: each of the two has a part of the units that the norm has."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(4, 9), nn.Linear(4, 7)
        self.norm, self.head = nn.BatchNorm1d(16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(torch.cat([self.left(x), self.right(x)], 1))))


def joined(shrink: bool, **options: Any) -> tuple[HESSO, nn.Module]:
    torch.manual_seed(0)
    model = Joined().double()
    space = niwaki.search_space(model, torch.randn(2, 4, dtype=torch.float64))
    optimizer = sgd(model.parameters())
    schedule = niwaki.Schedule(start=2, until=40, periods=6)
    policy = niwaki.ShrinkPolicy(cost=1e-6) if shrink else False
    method = HESSO(space, optimizer, niwaki.Budget(units=0.4), schedule, window=2, shrink=policy, **options)
    data = torch.Generator().manual_seed(1)
    for _ in range(40):
        optimizer.zero_grad()
        model(torch.randn(16, 4, generator=data, dtype=torch.float64)).square().mean().backward()
        optimizer.step()
    return method, model


@pytest.mark.parametrize("options", [{"vectorised": True}, {"vectorised": False}, {"readmit": True}], ids=str)
def test_shrinking_on_the_way_changes_no_choice(options: dict[str, bool]) -> None:
    """What has left would weigh on the means of layers, on some more than on others."""
    names = {one.name: 1.0 for one in ADDS_UP}
    (dense, _), (small, model) = (
        joined(shrink, compare="layer", criteria=names, **options) for shrink in (False, True)
    )
    assert model.norm.num_features < 16 and dense.done and small.done
    assert (dense.selector.removed() == small.selector.removed()).all()


@pytest.mark.parametrize("compare", COMPARE)
def test_a_killed_run_resumes_to_the_same_bits(compare: str) -> None:
    whole = Training("conv", adamw, Budget(macs=0.4), compare=compare)
    whole.step(SCHEDULE.until + 1)
    first = Training("conv", adamw, Budget(macs=0.4), compare=compare)
    first.step(9)
    model, optimizer = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.optimizer.state_dict())
    again = Training("conv", adamw, Budget(macs=0.4), compare=compare)
    again.model.load_state_dict(model)
    again.optimizer.load_state_dict(optimizer)
    again.done = 9
    again.step(SCHEDULE.until + 1 - 9)
    assert all(torch.equal(mine, whole.parameters()[name]) for name, mine in again.parameters().items())
    settings = first.optimizer.state_dict()["niwaki"]["settings"]
    assert settings.get("compare", "group") == compare and ("compare" in settings) == (compare != "group")


def test_a_run_that_compared_otherwise_is_not_resumed() -> None:
    for one, other, message in (
        ({}, {"compare": "space"}, "made by hesso with compare = None, but here it is 'space'"),
        ({"compare": "layer"}, {}, "made by hesso with compare = 'layer', but here it is None"),
    ):
        state = Training("mlp", sgd, Budget(macs=0.4), **one).optimizer.state_dict()
        with pytest.raises(MethodError, match=message):
            Training("mlp", sgd, Budget(macs=0.4), **other).optimizer.load_state_dict(state)


@pytest.mark.parametrize("compare", COMPARE)
def test_cric_tries_what_is_chosen_so(compare: str) -> None:
    run = Training("conv", sgd, None)
    schedule = niwaki.Schedule(start=3, until=60, periods=2)
    run.method = CRIC(
        run.space, run.optimizer, Budget(units=0.5), schedule, window=3, compare=compare, loss=run.loss, layers=0.5
    )
    trials = run.method.selector.scores.trials
    while not trials.cycle:
        run.step()
    weight = 0.5 + 0.5 * trials.layers
    saliency = run.method.selector.scores.sampler.weighted(trials.mean(), np.ones(run.space.num_units, bool), run.done)
    chosen = select(run.space, saliency, {"units": 0.5 * run.space.num_units}, compare=compare, weight=weight)
    assert (trials.trial == ~chosen).all() and trials.trial.any()
    run.step(schedule.until - run.done)
    assert run.method.done and run.method.plan().provenance.get("compare", "group") == compare


def test_layers_count_in_the_whole_space_too() -> None:
    space = Training("mlp", sgd).space
    values = np.ones(space.num_units) + np.arange(space.num_units) / 1000
    for group, weight in ((0, [4.0, 1.0]), (1, [1.0, 4.0])):
        keep = select(space, values, {"units": 9.0}, compare="space", weight=np.array(weight))
        share = [keep[one.numbers].mean() for one in space.groups]
        assert share[group] > share[1 - group] and share[group] > 0.5


@pytest.mark.parametrize("compare", COMPARE)
def test_lhspg_compares_the_merged_network_so(compare: str) -> None:
    job = Job(protect=0, criteria={"magnitude": 1.0}, compare=compare)
    job.until(SCHEDULE.start)
    before = job.method.selector.scores
    everything = np.ones(before.space.num_units, dtype=bool)
    expected = score(before.space, "magnitude", compare=compare).values
    np.testing.assert_allclose(
        before.saliency(SCHEDULE.start, everything), normalise(before.space, expected, everything, compare), rtol=1e-12
    )
    job.until(job.method.schedule.until)
    assert job.method.done and job.method.plan().provenance.get("compare", "group") == compare


@pytest.mark.parametrize("compare", ["group", "isomorphic", "space"])
def test_dhspg_ranks_so(compare: str) -> None:
    run = training("dhspg", net="conv", compare=compare)
    run.step(30)
    assert run.method is not None and run.method.done and run.method.plan().provenance["compare"] == compare


class Blocks(nn.Module):
    """Two blocks of one kind on a stream that may not shrink, and a head of another kind."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 6)) for _ in range(2))
        self.head = nn.Sequential(nn.Linear(6, 10, bias=False), nn.ReLU(), nn.Linear(10, 2))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


@pytest.mark.parametrize("compare", ["group", "isomorphic", "space"])
def test_dhspg_finds_what_is_most_redundant_so(compare: str) -> None:
    """Units of the first block are ten times as small as all others."""
    torch.manual_seed(0)
    space = niwaki.search_space(Blocks(), torch.randn(2, 6))
    method = DHSPG(
        space,
        sgd(space.model.parameters()),
        Budget(units=0.5),
        niwaki.Schedule(start=1, until=9, periods=1),
        window=1,
        tolerance=0.0,
        compare=compare,
    )
    small = 1 + torch.rand(space.num_units) / 10
    first, second, head = ("blocks.0.0", "blocks.1.0", "head.0")
    where = {group.name: group.numbers for group in space.groups}
    small[where[first]] *= 10
    choice = method.selector.choice
    choice._choose(1, torch.stack([torch.zeros_like(small), small]))
    gone = {name: int(choice.units[numbers].sum()) for name, numbers in where.items()}
    if compare == "group":
        assert max(gone.values()) - min(gone.values()) <= 2
    else:
        assert gone[first] == 9, "one has to stay"
        assert gone[head] and (gone[second] > 0) == (compare == "space")


def test_no_step_waits_for_the_device_layer_by_layer() -> None:
    run = Training("conv", sgd, Budget(macs=0.4), compare="layer")
    assert run.method is not None
    line, first = run.method.selector.scores.timeline, True
    for step in range(1, SCHEDULE.until + 1):
        run.optimizer.zero_grad()
        run.loss().backward()
        with Calls() as calls:
            run.optimizer.step()
        if line.scores(step) and line.selects(step) is None and not first:
            waiting = {"_local_scalar_dense", "nonzero", "item", "bincount", "equal", "masked_select", "_unique2"}
            assert not waiting & set(calls.counts), f"step {step}: {calls.counts}"
        first = first and not line.scores(step)  # layers are looked up once


def test_what_cannot_be_compared_so_is_refused() -> None:
    for kind, options, message in (
        (
            HESSO,
            {"compare": "all"},
            "compare='all' must be one of 'group', 'layer', 'isomorphic', 'space': it says with",
        ),
        (CRIC, {"compare": "", "layers": 0}, "compare='' must be one of 'group', 'layer', 'isomorphic', 'space'"),
        (DHSPG, {"compare": "layer"}, "compare='layer' must be one of 'group', 'isomorphic', 'space': it says with"),
        (
            HESSO,
            {"compare": "layer", "criteria": {"geometric_median": 1.0}},
            "The criterion 'geometric_median' scores units as a whole, so it cannot score them layer by layer: "
            "compare='group', 'isomorphic' or 'space'.",
        ),
        (
            HESSO,
            {"compare": "layer", "criteria": lambda space: np.ones(space.num_units)},
            "A function scores units as a whole, not layer by layer: compare='group', 'isomorphic' or 'space'.",
        ),
    ):
        with pytest.raises(MethodError, match=message):
            Training("mlp", sgd, Budget(macs=0.5), kind=kind, **options)
    with pytest.raises(MethodError, match="compare='all' must be one of 'group'"):
        Job(compare="all")
