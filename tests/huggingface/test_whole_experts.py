"""With ``layout="uniform"`` all routers keep equally many experts, so that a configuration can say how many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mixtures import decoder, tokens

import niwaki
from niwaki.core.edits import EraseExperts, EraseModules
from niwaki.errors import FileFormatError, PlanError
from niwaki.huggingface import can_save
from niwaki.testing.models import randomised

transformers = pytest.importorskip("transformers")


def network(family: str) -> Any:
    return randomised(decoder(family, use_cache=True))


def mask(space: niwaki.SearchSpace, *names: str) -> Any:
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        if group.structure is not None:
            keep[group.first] = space.structures[group.structure].name not in names
    return keep


@pytest.mark.parametrize(
    ("family", "number"),
    [
        ("Mixtral", "num_local_experts"),
        ("Olmoe", "num_experts"),
        ("Qwen2Moe", "num_experts"),
        ("Qwen3Moe", "num_experts"),
    ],
)
def test_an_ordinary_checkpoint_with_fewer_experts(family: str, number: str, tmp_path: Path) -> None:
    model = network(family)
    space = niwaki.search_space(model, tokens(), erase=True, layout="uniform")
    scores = niwaki.score(space, "magnitude")
    plan = niwaki.choose(space, scores, niwaki.Budget(params=0.85), remove="structures")
    first, second = plan.edits_of(EraseExperts)
    assert len(first.kept) == len(second.kept) == 3 and not plan.edits_of(EraseModules)
    by_name = {group.name: float(scores.values[group.first]) for group in space.groups}
    for edit in (first, second):
        path = edit.weight.replace("gate.weight", "experts")
        own = [by_name[f"{path}[{expert}] (whole)"] for expert in range(4)]
        assert sorted(edit.kept) == sorted(np.argsort(own)[1:].tolist())
    small: Any = niwaki.cut(model, plan)
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert getattr(again.config, number) == 3 and again.config.num_experts_per_tok == 2
    assert torch.equal(again(**tokens()).logits, small(**tokens()).logits)
    given = {"input_ids": tokens()["input_ids"][:1]}
    made = [one.generate(**given, max_new_tokens=4, do_sample=False) for one in (small, again)]
    assert torch.equal(*made)
    losses = [one(**tokens(), output_router_logits=True).aux_loss for one in (small, again)]
    assert torch.equal(*losses) and small.num_experts == 3 and model.num_experts == getattr(model.config, number) == 4


def test_the_balancing_loss_of_a_network_that_cannot_be_saved() -> None:
    """Its widths differ, and its number of experts does not: a copy of it outside of the layers follows all the same.
    After a second cut, too."""
    model = network("Mixtral")
    space = niwaki.search_space(model, tokens(), erase=True)
    (note,) = [one for one in space.notes if "num_experts" in one]
    assert note == (
        "These numbers equal the number of experts of 'model.layers.0.mlp.gate.weight': num_experts is 4, read by "
        "MixtralForCausalLM.forward. They follow a cut only if all routers keep equally many experts: layout='uniform' "
        "sees to that."
    )
    keep = mask(space, "model.layers.0.mlp.experts[1]", "model.layers.1.mlp.experts[3]")
    narrow = next(group for group in space.groups if group.name == "model.layers.0.self_attn.q_proj")
    keep[narrow.first] = False
    small: Any = niwaki.cut(model, space.plan(keep))
    with pytest.raises(FileFormatError, match="num_attention_heads would have to be"):
        small.save_pretrained("nowhere")
    assert small.num_experts == small.config.num_local_experts == small.model.config.num_local_experts == 3
    again = niwaki.search_space(small, tokens(), erase=True)
    names = ("model.layers.0.mlp.experts[0]", "model.layers.1.mlp.experts[1]")
    least: Any = niwaki.cut(small, again.plan(mask(again, *names)))
    assert least.num_experts == 2 and small.num_experts == 3
    for one in (small, least):
        found = one(**tokens(), output_router_logits=True)
        chances = torch.cat(found.router_logits).softmax(-1)
        chosen = torch.zeros_like(chances).scatter(1, chances.topk(2).indices, 1)
        assert torch.allclose(found.aux_loss, one.num_experts * (chosen.mean(0) * chances.mean(0)).sum())


def test_unequal_numbers_leave_the_copies_alone() -> None:
    """No number says how many experts all routers have."""
    model = network("Mixtral")
    space = niwaki.search_space(model, tokens(), erase=True)
    small: Any = niwaki.cut(model, space.plan(mask(space, "model.layers.0.mlp.experts[1]")))
    assert small.num_experts == small.config.num_local_experts == 4


def test_every_width_of_a_mixture_can_be_saved() -> None:
    for family in ("Mixtral", "Qwen2Moe"):
        assert can_save(niwaki.search_space(network(family), tokens(), layout="uniform"))


def test_with_a_layer(tmp_path: Path) -> None:
    """Routers of layers that go do not count."""
    model = network("Mixtral")
    space = niwaki.search_space(model, tokens(), erase=True, layout="uniform")
    layer = ("model.layers.0.self_attn", "model.layers.0.mlp")
    small: Any = niwaki.cut(model, space.plan(mask(space, *layer, "model.layers.1.mlp.experts[1]")))
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (again.config.num_hidden_layers, again.config.num_local_experts) == (1, 3)
    assert torch.equal(again(**tokens()).logits, small(**tokens()).logits)


def test_unequal_numbers_are_refused() -> None:
    model = network("Mixtral")
    space = niwaki.search_space(model, tokens(), erase=True, layout="uniform")
    why = (
        "With layout='uniform' all routers keep equally many experts, and the plan leaves 4 to "
        "'model.layers.1.mlp.gate.weight' and 3 to 'model.layers.0.mlp.gate.weight'. Erase as many of each."
    )
    with pytest.raises(PlanError, match=why):
        space.plan(mask(space, "model.layers.0.mlp.experts[1]"))


def test_a_configuration_has_one_number_for_all(tmp_path: Path) -> None:
    model = network("Mixtral")
    space = niwaki.search_space(model, tokens(), erase=True)
    small: Any = niwaki.cut(model, space.plan(mask(space, "model.layers.0.mlp.experts[1]")))
    why = "num_local_experts would have to be 3 for 'layer 0' and 4 for 'layer 1'"
    with pytest.raises(FileFormatError, match=why):
        small.save_pretrained(tmp_path)
