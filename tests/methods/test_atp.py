"""ATP: adapters that train under a mask which a controller learns, and what is cut and merged."""

from __future__ import annotations

import copy
import re
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from lora import Llama, adapted, lora_layers, merged
from lora_training import TOKENS
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from niwaki.errors import MethodError
from niwaki.selection.budget import Budget
from niwaki.surgery.zero import zeroed

SCHEDULE = niwaki.Schedule(start=2, until=32)  # project 8, freeze 20


def loss_fn(model: nn.Module, batch: Tensor) -> Tensor:
    return F.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())


class Job:
    """A decoder with adapters, and steps of language modelling on fixed tokens."""

    def __init__(self, masked: bool = True, **options: Any) -> None:
        torch.manual_seed(1)
        self.steps, self.under = 0, masked
        self.model = adapted(Llama(layers=1).double())
        self.space = niwaki.search_space(self.model, TOKENS[:2], rehearse=False)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=0.01)
        given = {"loss_fn": loss_fn, "batches": [TOKENS[:8], TOKENS[8:16]]} | options
        self.method = niwaki.ATP(self.space, self.optimizer, Budget(params=0.7), SCHEDULE, **given)

    def until(self, step: int) -> Job:
        while self.steps < step:
            number, self.steps = self.steps, self.steps + 1
            self.optimizer.zero_grad()
            if self.under:
                with self.method.masked():
                    loss_fn(self.model, TOKENS[number % 3 :: 3]).backward()
            else:
                loss_fn(self.model, TOKENS[number % 3 :: 3]).backward()
            self.optimizer.step()
        return self

    @property
    def mask(self) -> Any:
        return self.method.selector.mask  # type: ignore[attr-defined]


def outputs(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(TOKENS)
    return found


def test_at_the_end_masked_as_it_is_cut_and_merged_compute_the_same() -> None:
    job = Job()
    dense = {name: module.base_layer.weight.clone() for name, module in lora_layers(job.model)}
    job.until(31)
    for name, module in lora_layers(job.model):
        assert torch.equal(module.base_layer.weight, dense[name]), "W does not move before the end"
    with job.method.masked():
        last = outputs(job.model)
    assert float((last - outputs(job.model)).abs().max()) > 1e-6
    job.until(34)
    assert job.method.done and job.method.progress.phase == "done"
    plan, whole = job.method.plan(), outputs(job.model)
    with job.method.masked():
        masked = outputs(job.model)
    small = niwaki.cut(job.model, plan)
    size = float(whole.abs().max())
    for other in (masked, outputs(zeroed(job.model, plan)), outputs(small), outputs(merged(small))):
        assert float((other - whole).abs().max()) <= 1e-10 * size
    kept, all_of_it = plan.provenance["kept"]["params"], plan.provenance["dense"]["params"]
    assert kept <= 0.7 * all_of_it and sum(p.numel() for p in small.parameters()) == kept
    assert not any("lora" in name and keep for name, keep in plan.kept.items() if len(keep) < plan.units[name])


def test_the_mask_acts_in_the_step_and_is_taken_back() -> None:
    job = Job().until(12)
    assert job.mask.any()
    before = dict(job.model.named_parameters())
    values = {name: value.clone() for name, value in before.items()}
    plain = outputs(job.model)
    job.optimizer.zero_grad()
    with job.method.masked() as model:
        assert model is job.model
        assert float((outputs(model) - plain).abs().max()) > 1e-6
        loss_fn(model, TOKENS).backward()
        with (
            pytest.raises(MethodError, match="^The model is under gates already: a block with its gates cannot be in"),
            job.method.masked(),
        ):
            pass
        with pytest.raises(MethodError, match=r"^ATP takes a step inside of `with method.masked\(\):`"):
            job.optimizer.step()
    assert all(
        value is before[name] and torch.equal(value, values[name]) for name, value in job.model.named_parameters()
    )
    assert torch.equal(outputs(job.model), plain)
    with pytest.raises(ValueError, match="stop"), job.method.masked():
        raise ValueError("stop")
    assert all(value is before[name] for name, value in job.model.named_parameters())
    space, masked = job.method.space, job.mask
    for name, module in lora_layers(job.model):
        for where, gradient in (
            ("lora_A", module.lora_A["default"].weight.grad),
            ("lora_B", module.lora_B["default"].weight.grad),
        ):
            dim = 1 if where == "lora_A" else 0
            units = next(
                (one.units for one in space.dims if one.tensor == f"{name}.base_layer.weight" and one.dim == dim), None
            )
            gone = None if units is None else np.append(masked, False)[units].any(axis=1)
            if gone is not None and gone.any():
                rows = gradient.movedim(dim, 0)
                assert not rows[gone].any() and rows[~gone].any()


def test_adapters_of_masked_units_shrink_by_equal_pieces_and_others_are_the_optimizers() -> None:
    job = Job().until(20)
    job.until(21)  # the mask is fixed
    masked = job.mask
    name, module = next(
        (name, module) for name, module in lora_layers(job.model) if name.endswith(("up", "gate", "v")) and module
    )
    units = next(
        one.units for one in job.method.space.dims if one.tensor == f"{name}.base_layer.weight" and one.dim == 0
    )
    gone = torch.from_numpy(np.append(masked, False)[units].any(axis=1))
    weight = module.lora_B["default"].weight
    for group in job.optimizer.param_groups:
        group["lr"] = 0.0
    lengths = [weight.detach().norm(dim=1)]
    for step in range(22, 33):
        job.until(step)
        lengths.append(weight.detach().norm(dim=1))
    steps = torch.stack(lengths)[:, gone].diff(dim=0)
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-6, atol=1e-12)
    assert not lengths[-1][gone].any()
    torch.testing.assert_close(lengths[-1][~gone], lengths[0][~gone])
    read = 0
    for name, module in lora_layers(job.model):
        tables = [
            one.units for one in job.method.space.dims if one.tensor == f"{name}.base_layer.weight" and one.dim == 1
        ]
        columns = torch.from_numpy(np.append(masked, False)[tables[0]].any(axis=1)) if tables else torch.zeros(0).bool()
        if columns.any():
            weight = module.lora_A["default"].weight
            assert not weight[:, columns].any() and weight[:, ~columns].any()
            read += 1
    assert read > 0 and gone.any()


@pytest.fixture(scope="module")
def whole() -> Job:
    return Job().until(35)


@pytest.mark.parametrize("stop", [5, 26])
def test_it_resumes_to_the_same_bits(stop: int, whole: Job) -> None:
    first = Job().until(stop)
    weights, state = copy.deepcopy(first.model.state_dict()), copy.deepcopy(first.optimizer.state_dict())
    again = Job()
    again.model.load_state_dict(weights)
    again.optimizer.load_state_dict(state)
    again.steps = stop
    again.until(35)
    for mine, other in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert again.method.plan().to_json() == whole.method.plan().to_json()


def test_a_step_that_was_not_masked_is_said_once() -> None:
    with pytest.warns(
        UserWarning, match=r"^ATP takes step \d+ from a gradient that was not computed under its mask"
    ) as all_of:
        Job(masked=False).until(16)
    assert len([one for one in all_of if "not computed under its mask" in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Job().until(22)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batches": None}, "ATP needs batches for its controller: pass some that are held out of the training."),
        ({"batches": iter([1])}, "batches is a list_iterator, which is at its end after one pass"),
        ({"budget_weight": -1.0}, "budget_weight=-1.0"),
        (
            {"loss_fn": lambda model, batch: 1.0},
            "loss_fn must return the scalar loss of a batch, but returned a float.",
        ),
    ],
)
def test_bad_input(options: dict[str, Any], says: str) -> None:
    with pytest.raises(MethodError, match=f"^{re.escape(says)}"):
        Job(**options)


def test_without_adapters() -> None:
    model = Llama()
    space = niwaki.search_space(model, TOKENS[:2])
    with pytest.raises(MethodError, match="^The model has no LoRA layers"):
        niwaki.ATP(
            space, torch.optim.SGD(model.parameters()), Budget(params=0.7), SCHEDULE, loss_fn=loss_fn, batches=[TOKENS]
        )
