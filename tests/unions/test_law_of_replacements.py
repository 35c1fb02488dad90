"""Implants, union streams and both, alone and with erasures: the cut network is the masked one.

``python benchmarks/replacements.py`` does the same with a thousand plans.
"""

from __future__ import annotations

import pytest
import torch
from replacements import NETWORKS, Case

from niwaki.core.edits import EraseModules, Implant, Scatter
from niwaki.unions import union_plan


@pytest.fixture(scope="module", params=NETWORKS)
def case(request: pytest.FixtureRequest) -> Case:
    return Case.of(request.param)


@pytest.mark.parametrize("implants", [False, True])
@pytest.mark.parametrize("erase", [False, True])
def test_cut_is_masked(case: Case, erase: bool, implants: bool) -> None:
    for seed in range(10):  # the first that has all of it
        plan = case.random_plan(seed, erase=erase, union=True, implants=implants)
        has = [bool(plan.edits_of(kind)) for kind in (Scatter, Implant, EraseModules)]
        if has == [True, implants, erase]:
            break
    assert has == [True, implants, erase]
    outputs, gradients = case.deviation(plan)
    assert outputs < 1e-12 and gradients < 1e-11


def test_norms_in_front_of_a_layer_are_not_behind_it() -> None:
    """They have the channels of the stream, too; those behind scatter in place of the layer."""
    last = {name: [writer.module for writer in Case.of(name).writers.writers] for name in ("preresnet", "resnet")}
    assert last["preresnet"] == ["blocks.0.second", "blocks.1.second", "later.0.second", "later.1.second"]
    assert all(
        isinstance(Case.of("resnet").network.get_submodule(path), torch.nn.BatchNorm2d) for path in last["resnet"]
    )


def test_a_writer_that_is_erased_writes_nothing() -> None:
    """A channel that it alone would write leaves the stream."""
    case = Case.of("resnet")
    space, writers = case.space, case.writers
    alone = writers.alone()
    pair = [one for one in writers.writers if alone[one.units].all()]
    writes = [one.units == one.units[0] for one in writers.writers]
    writes[writers.writers.index(pair[0])][3] = True
    keep = alone | True
    assert space.keep_of(union_plan(writers, keep, writes))[pair[0].units[3]]
    (gone,) = [group.first for group in space.groups if group.name == f"{pair[0].name} (whole)"]
    keep[gone] = False
    plan = union_plan(writers, keep, writes)
    assert not space.keep_of(plan)[pair[0].units[3]]
    assert pair[0].module not in {edit.module for edit in plan.edits_of(Scatter)}
    assert max(case.deviation(plan)) < 1e-11
