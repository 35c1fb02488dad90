"""The profile over steps: every plan within the budget, all networks beside the dense one, in every runtime."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from handmade import ConvNet
from torch import nn

import niwaki
from niwaki.errors import BudgetError, MethodError
from niwaki.report.latency_profile import kept_saliency, onnx_runtime


def small() -> tuple[niwaki.SearchSpace, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 1, 8, 8)
    return niwaki.search_space(ConvNet(16, 24).eval(), x), x


def test_rows_meet_the_budget_in_their_steps_and_run_beside_the_dense_network() -> None:
    space, x = small()
    scores = niwaki.score(space, "magnitude")
    seen: list[nn.Module] = []

    def noting(network: nn.Module) -> nn.Module:
        seen.append(network)
        return network

    runtimes = {"torch": noting, "again": lambda network: network}
    found = niwaki.latency_profile(
        space,
        scores,
        niwaki.Budget(macs=0.6, round_to=3),
        x,
        round_to=(1, 8, 8),
        runtimes=runtimes,
        seconds=0,
        threads=1,
    )
    assert [row.round_to for row in found.rows] == [1, 8] and not found.unmet and found.dense_macs == space.cost().macs
    for row, network in zip(found.rows, seen[1:], strict=True):
        assert row.plan.provenance["budget"] == {"macs": 0.6, "round_to": row.round_to, "min_units": 1}
        assert (row.macs, row.params) == (space.cost(row.plan).macs, space.cost(row.plan).params)
        assert row.macs <= 0.6 * found.dense_macs and 0 < row.saliency < 1
        assert sum(p.numel() for p in network.parameters()) == row.params
    assert seen[0] is space.model
    assert list(found.latency) == ["torch", "again"]
    for beside in found.latency.values():
        assert list(beside.networks) == ["dense", "round_to=1", "round_to=8"] and beside.networks["dense"].threads == 1
    text = str(found)
    assert "macs <= 60.0%; microseconds of a forward pass" in text and "inputs 2x1x8x8, float32, cpu, 1 thread" in text
    assert f"{found.rows[1].macs / found.dense_macs:.1%}" in text


def test_steps_that_cannot_meet_the_budget_are_told() -> None:
    space, x = small()
    scores = niwaki.score(space, "magnitude")
    runtimes = {"torch": lambda network: network}
    found = niwaki.latency_profile(
        space, scores, niwaki.Budget(macs=0.05), x, round_to=(1, 16), runtimes=runtimes, seconds=0
    )
    assert [row.round_to for row in found.rows] == [1]
    assert "widths in multiples of 16" in found.unmet[16] and found.unmet[16] in str(found)
    with pytest.raises(
        BudgetError, match=r"No step meets the budget. The budget macs <= .*\(widths in multiples of 16\)"
    ):
        niwaki.latency_profile(space, scores, niwaki.Budget(macs=0.05), x, round_to=(16,), runtimes=runtimes)
    with pytest.raises(MethodError, match="round_to is empty: name at least one step"):
        niwaki.latency_profile(space, scores, niwaki.Budget(macs=0.5), x, round_to=())
    with pytest.raises(BudgetError, match="is not a budget. Name its measure"):
        niwaki.latency_profile(space, scores, 0.5, x)  # type: ignore[arg-type]


def test_kept_saliency_is_a_share_of_each_group() -> None:
    space, _ = small()
    first, second = space.groups[:2]
    values = np.ones(space.num_units)
    values[second.numbers] = 1000.0  # another scale
    values[first.first] = 17.0
    keep = np.ones(space.num_units, dtype=bool)
    keep[first.first] = False
    scores = niwaki.score(space, lambda _: values)
    lost = first.units * 17 / (17 + first.units - 1)  # each group counts by its units
    assert kept_saliency(space, scores, space.plan(keep)) == pytest.approx(1 - lost / space.num_units)
    assert kept_saliency(space, scores, space.plan(keep), "space") == pytest.approx(1 - 17 / values.sum())
    assert kept_saliency(space, scores, space.plan(np.ones(space.num_units, dtype=bool))) == 1


def test_onnx_runtime_computes_the_same() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    space, x = small()
    ready = onnx_runtime(space.model, x, threads=1)
    assert torch.allclose(ready(x)[0], space.model(x), atol=1e-4)
    found = niwaki.latency_profile(
        space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=0.5), x, round_to=(8,), seconds=0
    )
    assert list(found.latency) == ["torch", "ONNX Runtime"]
    assert all(one.median_us > 0 for one in found.latency["ONNX Runtime"].networks.values())
