"""With ``layout="uniform"`` whole layers are erased, so that a configuration can say what is left."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import niwaki
from niwaki.core.edits import EraseModules
from niwaki.errors import PlanError, UnknownName
from niwaki.networks.torchvision_cpu import load

load()
X = {"input_ids": torch.arange(8)[None]}


def llama() -> transformers.LlamaForCausalLM:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=5, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=31,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def model() -> transformers.LlamaForCausalLM:
    return llama()


@pytest.fixture(scope="module")
def space(model: transformers.LlamaForCausalLM) -> niwaki.SearchSpace:
    return niwaki.search_space(model, X, erase=True, layout="uniform")


def test_whole_layers_and_equal_widths(
    model: transformers.LlamaForCausalLM, space: niwaki.SearchSpace, tmp_path: Path
) -> None:
    """Two layers fewer, every other one narrower by as much: an ordinary checkpoint."""
    scores = niwaki.score(space, "magnitude")
    plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.7), remove="structures")
    (edit,) = plan.edits_of(EraseModules)
    assert len(edit.entries) == 2 and not edit.absent and len(edit.structures) == 4
    keep = space.keep_of(plan) & space.keep_of(niwaki.choose(space, scores, niwaki.Budget(units=0.8)))
    small = niwaki.cut(model, space.plan(keep))
    assert small.config.num_hidden_layers == 3 and small.config.intermediate_size < 24
    small.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(**X).logits, small(**X).logits)
    tokens = small.generate(**X, max_new_tokens=4, do_sample=False)
    assert torch.equal(again.generate(**X, max_new_tokens=4, do_sample=False), tokens)


def test_half_a_layer_stays(space: niwaki.SearchSpace) -> None:
    (first,) = [g for g in space.groups if g.structure is not None and g.name.startswith("model.layers.1.mlp")]
    keep = np.ones(space.num_units, dtype=bool)
    keep[first.first] = False
    with pytest.raises(
        PlanError, match="only whole layers are erased, and the plan leaves 'model.layers.1.mlp' out of a"
    ):
        space.plan(keep)
    assert space.erasures is not None and first.structure is not None
    names = {space.structures[number].name for number in space.erasures.together(first.structure)}
    assert names == {"model.layers.1.self_attn", "model.layers.1.mlp"}


def test_what_is_no_layer_is_not_offered() -> None:
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=31, n_positions=12)
    model = transformers.GPT2LMHeadModel(config)
    space = niwaki.search_space(model, {**X, "use_cache": False}, erase=True, layout="uniform")
    refused = {one.name: one.refused for one in space.structures}
    assert refused["transformer.wpe"] is not None and "it is no whole layer" in refused["transformer.wpe"]
    assert refused["transformer.h.0.mlp"] is None


def test_layers_leave_while_training() -> None:
    model = llama().train()
    space = niwaki.search_space(model, X, erase=True, layout="uniform")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    method = niwaki.H2SPG(space, optimizer, niwaki.Budget(macs=0.7), niwaki.Schedule(start=2, until=12), window=3)
    for _ in range(12):
        optimizer.zero_grad()
        model(**X, labels=X["input_ids"]).loss.backward()
        optimizer.step()
    small = niwaki.cut(model, method.plan())
    assert small.config.num_hidden_layers == len(small.model.layers) == 3
    assert torch.allclose(small.eval()(**X).logits, model.eval()(**X).logits, atol=1e-5)


def test_programs_have_no_layers(model: transformers.LlamaForCausalLM) -> None:
    with pytest.raises(UnknownName, match="an exported program has no layers. Leave out as_graph=True or layout="):
        niwaki.search_space(model, X, erase=True, layout="uniform", as_graph=True)


def test_post_norm_layers(tmp_path: Path) -> None:
    """Only where inexact structures are asked for: the configuration has a layer less."""
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, vocab_size=31
    )
    model = transformers.BertModel(config).eval()
    exact = niwaki.search_space(model, X, erase=True, layout="uniform")
    assert not any(one.erasable for one in exact.structures)
    space = niwaki.search_space(model, X, erase=True, layout="uniform", allow_inexact=True)
    erasable = [number for number, one in enumerate(space.structures) if one.erasable]
    assert [space.structures[number].layer for number in erasable] == [f"encoder.layer.{i}" for i in range(4)]
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        keep[group.numbers] = group.structure not in (erasable[0], erasable[2])
    plan = space.plan(keep)
    outcome = niwaki.check(model, plan, X)
    assert outcome.holds and outcome.inexact == ("encoder.layer.0", "encoder.layer.2")
    small = niwaki.cut(model, plan)
    small.save_pretrained(tmp_path)
    again = transformers.AutoModel.from_pretrained(tmp_path)
    assert again.config.num_hidden_layers == len(again.encoder.layer) == 2
    assert torch.equal(again(**X)[0], small(**X)[0])
