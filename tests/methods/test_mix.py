"""Functions of the user's as criteria inside a training."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from lora_training import Job
from numpy.typing import ArrayLike
from training import SCHEDULE, Training, adamw, sgd

from niwaki.core.space import SearchSpace
from niwaki.criteria import score
from niwaki.errors import MethodError
from niwaki.methods import CRIC
from niwaki.selection.budget import Budget


def reversed_order(space: SearchSpace) -> ArrayLike:
    """The later a unit of its group, the less it is worth."""
    return np.concatenate([np.arange(group.units, 0, -1) for group in space.groups])


def own_magnitude(space: SearchSpace) -> torch.Tensor:
    return torch.as_tensor(score(space, "magnitude").values)


def test_a_function_decides_alone() -> None:
    run = Training("conv", adamw, Budget(units=0.5), criteria=reversed_order)
    run.step(SCHEDULE.until)
    for group in run.space.groups:
        gone = run.marked()[group.numbers]
        assert (np.sort(gone) == gone).all(), "the last units leave first"
    assert run.method.progress.phase == "done" and run.marked().any()
    assert run.method.plan().provenance["criteria"] == {"reversed_order": 1.0}


@pytest.mark.parametrize("vectorised", [True, False])
def test_a_function_in_a_mix_counts_as_the_criterion_it_computes(vectorised: bool) -> None:
    mixes = [{"taylor1": 0.3, own_magnitude: 0.7}, {"taylor1": 0.3, "magnitude": 0.7}]
    runs = [Training("conv", sgd, Budget(macs=0.4), criteria=mix, vectorised=vectorised) for mix in mixes]
    for run in runs:
        run.step(SCHEDULE.until)
    assert (runs[0].marked() == runs[1].marked()).all() and runs[0].marked().any()
    assert list(runs[0].method.settings()["criteria"]) == ["taylor1", "own_magnitude"]


def test_it_sees_new_weights_and_the_gradient() -> None:
    seen = []

    def looking(space: SearchSpace) -> ArrayLike:
        assert not torch.is_grad_enabled()
        seen.append(all(p.grad is not None for p in space.model.parameters()))
        return np.ones(space.num_units)

    run = Training("mlp", sgd, Budget(macs=0.5), criteria=looking)
    run.step(SCHEDULE.until)
    assert len(seen) == 3 * SCHEDULE.periods and all(seen)  # the steps of the windows


def test_lhspg_takes_functions_of_the_merged_network() -> None:
    job = Job(loss=None, protect=0, criteria={reversed_order: 1.0})
    job.until(job.method.schedule.until)
    assert job.method.progress.phase == "done" and job.method.progress.marked > 0


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(MethodError, match="Two criteria are called '<lambda>', so a checkpoint could not tell them"):
        Training("mlp", sgd, Budget(macs=0.5), criteria={(lambda s: 1): 1.0, (lambda s: 2): 1.0})
    with pytest.raises(MethodError, match="3 is not a criterion: pass the name of one, such as 'magnitude', a func"):
        Training("mlp", sgd, Budget(macs=0.5), criteria={3: 1.0})
    with pytest.raises(MethodError, match="HESSO-CRIC scores what has begun to fade as if it had not"):
        Training("mlp", sgd, Budget(macs=0.5), kind=CRIC, criteria=reversed_order, layers=0)
    with pytest.raises(MethodError, match="readmit=True scores what has begun to fade as if it had not"):
        Training("mlp", sgd, Budget(macs=0.5), readmit=True, criteria=reversed_order)
    for name in ("exemplar", "geometric_median"):  # of distances, which no sum over a unit tells
        with pytest.raises(MethodError, match=f"if it had not, which the criterion '{name}' cannot be asked for"):
            Training("mlp", sgd, Budget(macs=0.5), readmit=True, criteria={"magnitude": 1.0, name: 1.0})
    for function, message in (
        (lambda space: np.ones(3), "'<lambda>' must return one number per unit, an array of shape"),
        (lambda space: "many", "'<lambda>' returned something that is not an array of numbers"),
        (lambda space: np.full(space.num_units, np.nan), "The scores of step 5 are not finite"),
    ):
        run = Training("mlp", sgd, Budget(macs=0.5), criteria=function)
        with pytest.raises(MethodError, match=message):
            run.step(6)
