"""``streams="union"``: the plans are those of the functions, and what cannot follow unions says so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from implanted import Residual, images, randomised
from torch import nn

import niwaki
from niwaki.core.edits import Scatter
from niwaki.errors import BudgetError, MethodError, PlanError, UnknownName
from niwaki.implants import ImplantLayers
from niwaki.implants import choose as choose_implants
from niwaki.implants import hap as implants_hap
from niwaki.networks.small import ResNet
from niwaki.surgery.zero import zeroed
from niwaki.unions import UnionSpace, Writers, choose, union_plan

X = torch.randn(2, 1, 8, 8).double()
NETS = {"resnet": (lambda: ResNet(4, 1, (8, 8), (8, 12), 2), X), "residual": (Residual, images())}
BUDGET = niwaki.Budget(macs=0.4)


@pytest.fixture(scope="module", params=NETS)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, UnionSpace, torch.Tensor]:
    make, x = NETS[request.param]
    network = randomised(make()).eval()
    return network, niwaki.search_space(network, x, streams="union"), x


@pytest.fixture(scope="module")
def space() -> UnionSpace:
    return niwaki.search_space(randomised(NETS["resnet"][0]()).eval(), X, streams="union")


def test_plans_are_those_of_the_functions(case: Any, tmp_path: Path) -> None:
    network, space, x = case
    plan = niwaki.choose(space, niwaki.score(space, "random"), BUDGET)
    writers = Writers.of(niwaki.search_space(network, x, erase=True))
    same = choose(writers, niwaki.score(writers.scored_space, "random"), BUDGET)
    assert plan.edits_of(Scatter) and plan.to_json() == same.to_json()
    assert space.cost(plan).macs == writers.space.cost(same).macs <= 0.4 * space.cost().macs
    assert niwaki.check(network, plan, x).holds
    small = niwaki.cut(network, plan)
    niwaki.save(small, tmp_path)
    make = NETS["residual" if isinstance(network, Residual) else "resnet"][0]
    torch.testing.assert_close(niwaki.load(make().double(), tmp_path).eval()(x), small(x))


@pytest.mark.parametrize("erase", [False, True])
def test_a_plan_closes_over_the_writers(case: Any, erase: bool) -> None:
    """A mask of all units, structures among them: streams carry what is written, and the cut network is the zeroed."""
    network, space, x = case
    plain, rng = space.writers.space, np.random.default_rng(1)
    keep = rng.random(space.num_units) < 0.7
    units, writes = space.writers.split(keep)
    width = sum(group.units for group in plain.width_groups)
    units[width:] = True
    for group in plain.width_groups:
        units[group.first] = True
    for mask in writes:
        mask[0] = True
    if erase:
        first = next(group for group in plain.groups if group.name == f"{space.writers.writers[0].name} (whole)")
        units[first.first] = False
    plan = space.plan(np.concatenate([units, *writes]), {"by": "hand"})
    assert plan.provenance == {"by": "hand"} and plan.edits_of(Scatter)
    living = [mask & (not erase or number > 0) for number, mask in enumerate(writes)]
    carried = np.where(space.writers.alone(), False, units)
    for mask, writer in zip(living, space.writers.writers, strict=True):
        carried[writer.units[mask]] = True
    assert plan.edits == union_plan(space.writers, carried, writes).edits
    stays = plain.keep_of(plan)
    for mask, writer in list(zip(writes, space.writers.writers, strict=True))[erase:]:
        assert stays[writer.units[mask]].all()
    torch.testing.assert_close(niwaki.cut(network, plan)(x), zeroed(network, plan)(x), rtol=1e-10, atol=1e-12)
    assert niwaki.check(network, plan, x).holds


def test_what_it_is(space: UnionSpace) -> None:
    assert space.num_units == space.scored_space.num_units > space.writers.space.num_units
    assert space.model is space.writers.space.model and space.cost() == space.writers.space.cost()
    channels = sum(len(writer.units) for writer in space.writers.writers)
    told = f"union streams: {channels} channels of {len(space.writers.writers)} branches of their own\nshared by "
    assert told in str(space) and repr(space) == str(space)
    assert isinstance(niwaki.search_space(space.model, X, streams="shared"), niwaki.SearchSpace)
    with pytest.raises(PlanError, match=f"keep must be a mask of {space.num_units} units, but has the shape"):
        space.plan(np.ones(space.writers.space.num_units, dtype=bool))
    keep = np.ones(space.num_units, dtype=bool)
    keep[-len(space.writers.writers[-1].units) :] = False
    with pytest.raises(PlanError, match="would write no channel that stays. Let it write one, or erase it"):
        space.plan(keep)


LOSS = nn.CrossEntropyLoss()
DATA = [(X, torch.zeros(2, dtype=torch.long))]


def calls(space: Any) -> dict[str, Callable[[], object]]:
    """Everything that takes a search space and does not follow unions."""
    optimizer = torch.optim.SGD(space.model.parameters(), lr=0.1)
    scores, schedule = niwaki.score(space, "magnitude"), niwaki.Schedule.of(100)
    plan = niwaki.choose(space, scores, BUDGET)
    methods = [
        "HESSO",
        "CRIC",
        "DHSPG",
        "H2SPG",
        "HSPG",
        "AdaHSPG",
        "GReg1",
        "GReg2",
        "GaP",
        "WeightMom",
        "DDPTraining",
    ]
    trained = {name: lambda name=name: getattr(niwaki, name)(space, optimizer, BUDGET, schedule) for name in methods}
    return {
        **trained,
        "ATO": lambda: niwaki.ATO(space, optimizer, BUDGET, schedule, loss_fn=LOSS),
        "LHSPG": lambda: niwaki.LHSPG(space, optimizer, BUDGET, schedule),
        "ATP": lambda: niwaki.ATP(space, optimizer, BUDGET, schedule, loss_fn=LOSS, batches=DATA),
        "choose_iteratively": lambda: niwaki.choose_iteratively(space, "magnitude", BUDGET),
        "compensate": lambda: niwaki.compensate(space, plan, [X]),
        "fold_constants": lambda: niwaki.fold_constants(space, plan, X),
        "implants.choose": lambda: choose_implants(space, scores, BUDGET),
        "implants.hap": lambda: implants_hap(space, scores),
        "ImplantLayers": lambda: ImplantLayers.of(space),
        "latency_profile": lambda: niwaki.latency_profile(space, scores, BUDGET, X),
        "DDPMasks": lambda: niwaki.DDPMasks(DATA, LOSS).learn(space, BUDGET),
        "refine": lambda: niwaki.refine(space, scores, BUDGET, DATA),
        "reindex": lambda: niwaki.reindex(space, plan),
        "report": lambda: niwaki.report("unused", space, plan),
        "Surgeon": lambda: niwaki.Surgeon(DATA, LOSS)(space),
        "timed": lambda: niwaki.timed(space, X),
        "Writers": lambda: Writers.of(space),
    }


def test_what_cannot_follow_says_so(space: UnionSpace) -> None:
    for name, call in calls(space).items():
        with pytest.raises(MethodError) as caught:
            call()
        assert "space is one of union streams (streams='union'), which niwaki.score, niwaki.choose" in str(
            caught.value
        ), name
        assert "Pass space.writers.space, or make it without streams='union'" in str(caught.value), name
    with pytest.raises(MethodError, match="space is the scored_space of union streams"):
        niwaki.score(space, niwaki.Surgeon(DATA, LOSS))


@pytest.mark.parametrize("name", ["activation", "cka", "geometric_median", "exemplar", "reinitialised"])
def test_criteria_that_cannot_tell_branches_apart(space: UnionSpace, name: str) -> None:
    for criterion in (name, {name: 0.5, "magnitude": 0.5}):
        with pytest.raises(MethodError, match=f"The criterion '{name}' does not tell what each branch writes"):
            niwaki.score(space, criterion, DATA, LOSS)


def test_choices_that_unions_do_not_know(space: UnionSpace) -> None:
    scores = niwaki.score(space, "magnitude")
    for more, what in (
        ({"compare": "space"}, "compare="),
        ({"example_inputs": X}, "example_inputs="),  # of a budget without a latency
        ({"remove": "structures"}, "remove='structures'"),
    ):
        with pytest.raises(BudgetError, match=f"{what} is not for union streams, which have one threshold"):
            niwaki.choose(space, scores, BUDGET, **more)
    with pytest.raises(BudgetError, match="For union streams a budget limits macs, params, memory"):
        niwaki.choose(space, scores, niwaki.Budget(units=0.5))
    with pytest.raises(BudgetError, match="The latency of union streams is measured on networks that are cut"):
        niwaki.choose(space, scores, niwaki.Budget(latency=0.5))
    with pytest.raises(BudgetError, match=r"or niwaki.score\(space, ...\) with the space made with streams='union'"):
        niwaki.choose(space, niwaki.score(space.writers.space, "magnitude"), BUDGET)


def test_networks_and_arguments_without_unions() -> None:
    chain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(PlanError, match=r"can have channels of its own \(nothing is added to a stream.*\). Leave out"):
        niwaki.search_space(chain, torch.randn(1, 4), streams="union")
    with pytest.raises(PlanError, match="added to a stream, or the space was made without erase=True"):
        UnionSpace.of(niwaki.search_space(ResNet(4, 1, (8, 8), (8,), 1), torch.randn(1, 1, 8, 8)))
    with pytest.raises(UnknownName, match="There is no streams='both'. Choose 'shared'"):
        niwaki.search_space(chain, torch.randn(1, 4), streams="both")  # type: ignore[call-overload]
    with pytest.raises(UnknownName, match="an exported program has none. Cut the model, and export the small network"):
        niwaki.search_space(chain, torch.randn(1, 4), as_graph=True, streams="union")
