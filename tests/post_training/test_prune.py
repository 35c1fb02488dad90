"""One call that prunes a trained network."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.errors import BudgetError, MethodError
from niwaki.networks.super_resnet import SuperResNet

pytest.importorskip("sklearn")


@pytest.fixture(scope="module")
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network, images and labels: the first 1,200 were trained on."""
    from sklearn import datasets

    torch.manual_seed(0)
    pixels, labels = datasets.load_digits(return_X_y=True)
    x, y = torch.tensor(pixels, dtype=torch.float32).reshape(-1, 1, 8, 8) / 8 - 1, torch.tensor(labels)
    net = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 32, 3, stride=2, bias=False),
        nn.BatchNorm2d(32),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 32),
        nn.ReLU(),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(80):
        picked = torch.randint(1200, (128,))
        optimizer.zero_grad()
        F.cross_entropy(net(x[picked]), y[picked]).backward()
        optimizer.step()
    return net.eval(), x, y


def batches(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x[:256].split(64), y[:256].split(64), strict=True))


def lost(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return float(F.cross_entropy(model.eval()(x[1200:]), y[1200:]))


def test_rounds_and_repair_each_lose_less(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    before = {name: value.clone() for name, value in net.state_dict().items()}
    losses = {}
    for rounds in (1, 8):
        for repair in ("none", "norms", "compensate"):
            pruned = niwaki.prune(
                *(net, x[:2], niwaki.Budget(macs=0.3)),
                batches=batches(x, y),
                loss_fn=nn.CrossEntropyLoss(),
                rounds=rounds,
                repair=repair,  # type: ignore[arg-type]
            )
            losses[rounds, repair] = lost(pruned.model, x, y)
            assert 0.29 < pruned.report.small.macs / pruned.report.dense.macs <= 0.3
    dense = lost(net, x, y)
    for rounds in (1, 8):
        assert dense < losses[rounds, "compensate"] < losses[rounds, "norms"] < losses[rounds, "none"]
    assert losses[8, "compensate"] < 1.05 * losses[1, "compensate"]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_the_report_says_what_was_done(
    digits: tuple[nn.Module, Tensor, Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    net, x, y = digits
    heard: list[tuple[int, int, float]] = []
    with caplog.at_level(logging.INFO, "niwaki"):
        pruned = niwaki.prune(
            *(net, x[:2], niwaki.Budget(params=0.5)),
            batches=batches(x, y),
            loss_fn=nn.CrossEntropyLoss(),
            method="magnitude",
            rounds=2,
            told=lambda *one: heard.append(one),
        )
    report = pruned.report
    assert list(report.losses) == ["dense", "cut", "repaired"] and report.layers == 3 and not report.left
    assert report.losses["repaired"] < report.losses["cut"]
    assert str(pruned).startswith(f"{report.dense.macs / report.small.macs:.2f} times fewer MACs (")
    assert "by magnitude in 2 rounds" in str(pruned) and "3 layers have new weights." in str(pruned)
    assert [one[:2] for one in heard] == [(1, 2), (2, 2)] and heard[1][2] < heard[0][2] < 1
    assert "Round 1 of 2: " in caplog.text and "times fewer MACs" in caplog.text
    assert niwaki.cut(net, pruned.plan)[0].weight.shape == pruned.model[0].weight.shape  # type: ignore[index]


def test_without_data_magnitudes_decide_and_nothing_is_repaired(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, _ = digits
    pruned = niwaki.prune(net, x[:2], niwaki.Budget(macs=0.5))
    space = niwaki.search_space(net, x[:2])
    assert pruned.plan.kept == niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5)).kept
    assert not pruned.report.losses and "by magnitude in 1 round," in str(pruned)


def test_whole_structures_can_go() -> None:
    torch.manual_seed(0)
    net = SuperResNet(3, 1, (4, 8), (2, 1), (3, 5)).eval()
    x = torch.randn(8, 1, 8, 8)
    pruned = niwaki.prune(
        *(net, x, niwaki.Budget(macs=0.6)),
        batches=[(x, torch.arange(8) % 3)],
        loss_fn=nn.CrossEntropyLoss(),
        rounds=2,
        remove="structures",
    )
    assert pruned.report.small.macs <= 0.6 * pruned.report.dense.macs and pruned.model(x).shape == (8, 3)


def test_wrong_inputs_get_sentences(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    given = (net, x[:2], niwaki.Budget(macs=0.5))
    with pytest.raises(MethodError, match="niwaki.prune has batches without loss_fn: it needs both, or neither"):
        niwaki.prune(*given, batches=batches(x, y))
    with pytest.raises(MethodError, match="niwaki.prune has loss_fn without batches: it needs both, or neither"):
        niwaki.prune(*given, loss_fn=nn.CrossEntropyLoss())
    with pytest.raises(MethodError, match="There are no batches. Pass some inputs; a loader that is used up gives"):
        niwaki.prune(*given, batches=iter(()), loss_fn=nn.CrossEntropyLoss())
    with pytest.raises(MethodError, match="repair='norms' needs batches and loss_fn: without data nothing is known"):
        niwaki.prune(*given, repair="norms")
    with pytest.raises(MethodError, match="repair='more' is none of 'compensate', 'norms', 'none'"):
        niwaki.prune(*given, repair="more")  # type: ignore[arg-type]
    with pytest.raises(MethodError, match="rounds=0 must be a whole number"):
        niwaki.prune(*given, rounds=0)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wrong = {
        "does not run on the inputs of a batch: RuntimeError: .* Batches are pairs .inputs, labels., in this order": (
            y,
            x,
        ),
        r"fails on outputs of shape \[40, 10\] and labels of type int64: IndexError: Target 1\d is out of bound": (
            x[:40],
            y[:40] + 10,
        ),
        r"fails on outputs of shape \[40, 10\] and labels of type float32: RuntimeError: ": (x[:40], y[:40].float()),
    }
    for why, batch in wrong.items():
        with pytest.raises(MethodError, match=why):
            niwaki.prune(*given, batches=[batch], loss_fn=nn.CrossEntropyLoss())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("repair", ["none", "norms", "compensate"])
def test_modules_are_in_the_modes_in_which_they_were(repair: Any) -> None:
    net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)).train()
    net[1].eval()
    data = [(torch.randn(8, 4), torch.arange(8) % 3)]
    pruned = niwaki.prune(
        *(net, data[0][0], niwaki.Budget(macs=0.5)),
        batches=data,
        loss_fn=nn.CrossEntropyLoss(),
        rounds=1,
        repair=repair,
    )
    for network in (net, pruned.model):
        assert [module.training for module in network.modules()] == [True, True, False, True, True]


def test_measured_limits_are_met_in_one_round(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    pruned = niwaki.prune(net, x[:2], niwaki.Budget(latency=10**9))  # a thousand seconds: everything may stay
    assert "latency" in pruned.plan.provenance["measured"] and pruned.report.small == pruned.report.dense
    space = niwaki.search_space(net, x[:2])
    plan = niwaki.choose_iteratively(space, "magnitude", niwaki.Budget(activations=0.7), rounds=1)
    assert plan.kept == niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(activations=0.7)).kept


def test_a_surgeon_of_the_user_is_compared_in_the_whole_space(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    data, loss_fn = batches(x, y), nn.CrossEntropyLoss()
    given = {"batches": data, "loss_fn": loss_fn, "rounds": 1, "repair": "none"}
    plans = [
        niwaki.prune(net, x[:2], niwaki.Budget(macs=0.5), **given, method=method).plan  # type: ignore[arg-type]
        for method in (None, niwaki.Surgeon(data, loss_fn))
    ]
    assert plans[0].kept == plans[1].kept and plans[1].provenance["compare"] == "space"


def test_refine_comes_nearer_to_the_dense_outputs(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    heard: list[tuple[int, int, float]] = []
    given: dict[str, Any] = {"batches": batches(x, y), "loss_fn": nn.CrossEntropyLoss(), "method": "magnitude"}
    refined = niwaki.prune(
        *(net, x[:2], niwaki.Budget(macs=0.4)), **given, refine=1, told=lambda *one: heard.append(one)
    )
    space = niwaki.search_space(net, x[:2])
    scores = niwaki.score(space, "magnitude")
    assert refined.plan.kept == niwaki.refine(space, scores, niwaki.Budget(macs=0.4), given["batches"]).kept
    assert [one[:2] for one in heard] == [(number, 4) for number in (1, 2, 3, 4)]
    assert {one[2] for one in heard} == {heard[0][2]} and 0.38 < heard[0][2] <= 0.4
    assert "refined" in refined.plan.provenance and refined.report.losses["repaired"] < refined.report.losses["cut"]


def test_refine_says_what_it_needs(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    given = (net, x[:2], niwaki.Budget(macs=0.5))
    data: dict[str, Any] = {"batches": batches(x, y), "loss_fn": nn.CrossEntropyLoss()}
    with pytest.raises(MethodError, match="refine=-1 must be a whole number: how often all groups are tried"):
        niwaki.prune(*given, refine=-1)
    with pytest.raises(MethodError, match="refine= needs batches and loss_fn: it compares outputs"):
        niwaki.prune(*given, refine=1)
    with pytest.raises(MethodError, match="refine= starts from a choice in one round, not from rounds=4"):
        niwaki.prune(*given, **data, refine=1, rounds=4)
    with pytest.raises(MethodError, match="refine= shares units out among groups, and remove='structures' asks"):
        niwaki.prune(*given, **data, refine=1, remove="structures")


def test_the_last_repair_can_have_batches_of_its_own(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    few, more = batches(x, y)[:1], list(zip(x[:1200].split(100), y[:1200].split(100), strict=True))
    given: dict[str, Any] = {"loss_fn": nn.CrossEntropyLoss(), "method": "magnitude", "rounds": 1}
    found = [
        niwaki.prune(net, x[:2], niwaki.Budget(macs=0.3), batches=few, repair_batches=last, **given)
        for last in (None, more)
    ]
    assert found[0].plan.kept == found[1].plan.kept
    assert lost(found[1].model, x, y) < lost(found[0].model, x, y)
    with torch.no_grad():
        whole = sum(float(F.cross_entropy(net(a), b)) for a, b in more) / len(more)
    assert found[1].report.losses["dense"] == pytest.approx(whole)
    with pytest.raises(MethodError, match="niwaki.prune has repair_batches without batches: it needs both"):
        niwaki.prune(net, x[:2], niwaki.Budget(macs=0.5), repair_batches=more)
    with pytest.raises(MethodError, match="There are no batches"):
        niwaki.prune(net, x[:2], niwaki.Budget(macs=0.5), batches=few, repair_batches=[], **given)


class Masked(nn.Module):
    """A network that needs its second argument."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.last(torch.relu(self.first(x * mask)))
        return out


def test_refine_runs_networks_as_the_loss_does() -> None:
    torch.manual_seed(0)
    net = Masked()
    triples = [(torch.randn(32, 8), (torch.rand(32, 8) > 0.5).float(), torch.randint(0, 3, (32,))) for _ in range(4)]
    named = [{"image": x, "mask": mask, "label": y} for x, mask, y in triples]
    found = [
        niwaki.prune(
            *(net, triples[0][:2], niwaki.Budget(macs=0.5)), batches=data, loss_fn=loss_fn, method="magnitude", refine=1
        ).plan.kept
        for data, loss_fn in (
            (triples, lambda model, batch: F.cross_entropy(model(*batch[:2]), batch[2])),
            (named, lambda model, batch: F.cross_entropy(model(batch["image"], batch["mask"]), batch["label"])),
            ([(batch[:2], batch[2]) for batch in triples], nn.CrossEntropyLoss()),
        )
    ]
    space = niwaki.search_space(net, triples[0][:2])
    scores, budget = niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5)
    plan = niwaki.refine(space, scores, budget, triples, lambda model, batch: model(*batch[:2]))
    assert found == [plan.kept] * 3
    with pytest.raises(MethodError, match="A batch is a tuple of 3, more than inputs and labels. Say how to run a mod"):
        niwaki.refine(space, scores, budget, triples)


def test_what_refine_cannot_compare_is_said_before_anything_is_scored() -> None:
    def never(space: Any) -> Any:
        raise AssertionError("scored")

    class Named(nn.Sequential):
        def forward(self, x: Tensor) -> Any:
            return {"out": super().forward(x)}

    net, data = Named(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), [torch.randn(8, 4) for _ in range(2)]
    given: dict[str, Any] = {"batches": data, "method": never, "refine": 1}
    budget = niwaki.Budget(macs=0.5)
    with pytest.raises(MethodError, match=r"refine= compares logits, and the .*Named gives loss_fn a dict, which is"):
        niwaki.prune(net, data[0], budget, **given, loss_fn=lambda model, x: model(x)["out"].square().mean())
    with pytest.raises(MethodError, match=r"refine= compares what .* and loss_fn calls it 2 times for one. Call"):
        niwaki.prune(net, data[0], budget, **given, loss_fn=lambda model, x: (model(x), model(x)))
    with pytest.raises(BudgetError, match="refine= compares networks of equal cost, and a limit in latency is met by"):
        niwaki.prune(net, data[0], niwaki.Budget(latency=0.5), **given, loss_fn=lambda model, x: model(x))


def test_criteria_that_look_at_layers_have_names(digits: tuple[nn.Module, Tensor, Tensor]) -> None:
    net, x, y = digits
    data, loss_fn = batches(x, y), nn.CrossEntropyLoss()
    given = (net, x[:2], niwaki.Budget(macs=0.5))
    rest: dict[str, Any] = {"batches": data, "loss_fn": loss_fn, "rounds": 1, "repair": "none"}
    for name, one in (
        ("surgeon", niwaki.Surgeon(data, loss_fn)),
        ("cap", niwaki.CaP(data, lambda model, batch: model(batch[0]))),
    ):
        plans = [niwaki.prune(*given, **rest, method=method).plan for method in (name, one)]
        assert plans[0].kept == plans[1].kept and plans[0].provenance["compare"] == "space"
        with pytest.raises(MethodError, match=f"method='{name}' needs batches and loss_fn: it looks at what layers"):
            niwaki.prune(*given, method=name)
        with pytest.raises(MethodError, match=r"readers=True changes nothing for a (Surgeon|CaP), which looks at the"):
            niwaki.prune(*given, **rest, method=name, readers=True)
    with pytest.raises(MethodError, match="Surgeon is a class and no criterion: pass an instance of it"):
        niwaki.prune(*given, **rest, method=niwaki.Surgeon)


def test_complex_layers_are_scored_by_other_means_than_the_surgeons() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Linear(*size, dtype=torch.complex64) for size in ((4, 16), (16, 6))))
    data = [torch.randn(30, 4, dtype=torch.complex64)]
    pruned = niwaki.prune(
        *(net, data[0], niwaki.Budget(macs=0.5)), batches=data, loss_fn=lambda model, x: model(x).abs().mean()
    )
    assert pruned.report.left == {"1": "its weights are complex numbers, and only real ones are fitted"}
