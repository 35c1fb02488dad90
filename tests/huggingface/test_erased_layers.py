"""Transformers without whole layers or halves of layers: ordinary checkpoints, and generation with a cache."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_fresh import greedy, in_a_fresh_process

import niwaki
from niwaki.core.edits import EraseModules
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.errors import FileFormatError
from niwaki.networks.torchvision_cpu import load
from niwaki.surgery.zero import zeroed

load()
transformers = pytest.importorskip("transformers")

_DECODER = {
    "vocab_size": 99, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip


def built(name: str) -> tuple[Any, dict[str, torch.Tensor]]:
    """A small model with large random weights, and inputs."""
    torch.manual_seed(0)
    inputs = {"input_ids": torch.randint(3, 99, (2, 9))}
    if name == "ViT":
        inputs = {"pixel_values": torch.randn(2, 3, 16, 16)}
        config = transformers.ViTConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=4,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        )
        model = transformers.ViTForImageClassification(config)
    elif name == "GPT2":
        config = transformers.GPT2Config(
            n_embd=16, n_layer=4, n_head=2, n_positions=40, vocab_size=99, bos_token_id=1, eos_token_id=2
        )
        model = transformers.GPT2LMHeadModel(config)
    elif name == "T5":
        config = transformers.T5Config(
            d_model=16, d_kv=8, d_ff=24, num_layers=4, num_decoder_layers=3, num_heads=2, vocab_size=99,
            decoder_start_token_id=0,
        )  # fmt: skip
        model = transformers.T5ForConditionalGeneration(config)
        inputs["decoder_input_ids"] = torch.randint(3, 99, (2, 5))
    elif name == "Bart":
        config = transformers.BartConfig(
            d_model=16, encoder_layers=2, decoder_layers=3, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=24, decoder_ffn_dim=24, max_position_embeddings=40, vocab_size=99, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, decoder_start_token_id=2, forced_eos_token_id=None,
        )  # fmt: skip
        model = transformers.BartForConditionalGeneration(config)
        inputs["decoder_input_ids"] = torch.randint(3, 99, (2, 5))
    else:
        more = {"sliding_window": 4, "query_pre_attn_scalar": 8} if name == "Gemma2" else {}
        model = getattr(transformers, f"{name}ForCausalLM")(
            getattr(transformers, f"{name}Config")(**{**_DECODER, **more})
        )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3) if parameter.ndim > 1 else torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model.eval(), inputs


def without(space: SearchSpace, parts: Iterable[str]) -> Plan:
    """The plan that erases all structures whose names begin like one of these."""
    keep = np.ones(space.num_units, dtype=bool)
    asked = tuple(parts)
    for group in space.groups:
        if group.structure is not None and space.structures[group.structure].name.startswith(asked):
            keep[group.first] = False
    return space.plan(keep)


WHOLE = {  # layers, and what the configuration then says
    "Llama": (("model.layers.1.", "model.layers.2."), {"num_hidden_layers": 2}, "AutoModelForCausalLM"),
    "Qwen3": (("model.layers.0.", "model.layers.3."), {"num_hidden_layers": 2}, "AutoModelForCausalLM"),
    "GPT2": (("transformer.h.0.",), {"n_layer": 3}, "AutoModelForCausalLM"),
    "ViT": (("vit.layers.0.", "vit.layers.2."), {"num_hidden_layers": 2}, "AutoModelForImageClassification"),
    "T5": (
        ("encoder.block.1.", "encoder.block.3.", "decoder.block.1."),
        {"num_layers": 2, "num_decoder_layers": 2},
        "AutoModelForSeq2SeqLM",
    ),
}


def test_whole_layers_load_without_niwaki(tmp_path: Path) -> None:
    """Equal scores and tokens, with the cache, in a process without niwaki."""
    jobs: dict[Path, tuple[str, dict[str, Any]]] = {}
    made = {}
    for name, (layers, expected, auto) in WHOLE.items():
        model, inputs = built(name)
        before = model.config.to_dict()
        plan = without(niwaki.search_space(model, inputs, erase=True), layers)
        small: Any = niwaki.cut(model, plan)
        (edit,) = plan.edits_of(EraseModules)
        assert set(edit.entries) == {layer.rstrip(".") for layer in layers} and not edit.absent
        assert {key: small.config.to_dict()[key] for key in expected} == expected
        assert model.config.to_dict() == before
        outcome = niwaki.check(model, plan, inputs)
        assert outcome.holds, str(outcome)
        small.save_pretrained(tmp_path / name)
        told = json.loads((tmp_path / name / "config.json").read_text())
        assert {key: told[key] for key in expected} == expected
        jobs[tmp_path / name], made[tmp_path / name] = (auto, inputs), small
    for folder, found in in_a_fresh_process(jobs).items():
        small, inputs = made[folder], jobs[folder][1]
        with torch.no_grad():
            assert torch.allclose(found["logits"], small(**inputs).logits, atol=1e-5), folder.name
        if small.can_generate():
            assert torch.equal(found["tokens"], greedy(small, inputs, cache=True)), folder.name


def test_widths_and_layers_load_without_niwaki(tmp_path: Path) -> None:
    """Beside uniform widths, whole layers are what a configuration can say."""
    model, inputs = built("Llama")
    space = niwaki.search_space(model, inputs, layout="uniform", erase=True)
    keep = np.ones(space.num_units, dtype=bool)
    for group in space.groups:
        if group.structure is not None:
            keep[group.first] = not space.structures[group.structure].name.startswith("model.layers.2")
        else:
            keep[group.first + (group.units + 1) // 2 : group.first + group.units] = False
    small: Any = niwaki.cut(model, space.plan(keep))
    niwaki.huggingface.save_pretrained(small, tmp_path / "out", inputs)
    (found,) = in_a_fresh_process({tmp_path / "out": ("AutoModelForCausalLM", inputs)}).values()
    assert torch.allclose(found["logits"], small(**inputs).logits, atol=1e-5)
    assert torch.equal(found["tokens"], greedy(small, inputs, cache=True))
    assert small.config.num_hidden_layers == 3 and small.config.hidden_size < 16


HALVES = {  # some attention, the first and others
    "Llama": (("model.layers.0.self_attn", "model.layers.2.self_attn"), {1: 0, 3: 1}),
    "Gemma2": (("model.layers.0.post_attention", "model.layers.1.post_attention"), {2: 0, 3: 1}),
    "GPT2": (("transformer.h.0.attn",), {1: 0, 2: 1, 3: 2}),
    "Bart": (("model.decoder.layers.0.self_attn", "model.decoder.layers.0.encoder_attn"), {1: 0, 2: 1}),
}


@pytest.mark.parametrize("name", HALVES)
def test_generation_without_some_attention(name: str) -> None:
    """A cache asks the first layer (of each kind) how long the sequence is: those that are left move up."""
    halves, moved = HALVES[name]
    model, inputs = built(name)
    plan = without(niwaki.search_space(model, inputs, erase=True), halves)
    (edit,) = plan.edits_of(EraseModules)
    assert not edit.entries and {int(path.split(".")[-2]): new for (path, _), new in edit.numbers.items()} == moved
    small, dense = niwaki.cut(model, plan), zeroed(model, plan)
    expected = greedy(dense, inputs, cache=True)
    assert torch.equal(greedy(small, inputs, cache=True), expected)
    assert torch.equal(greedy(small, inputs, cache=False), expected)
    with pytest.raises(FileFormatError, match="cannot be expressed in a config.json|does not know which numbers"):
        small.save_pretrained("nowhere")


def test_a_scale_of_a_layer_number_is_in_no_configuration() -> None:
    """GPT-2 may divide by the number of a layer. A layer that moves up divides as before, unlike one that is built
    there."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=16, n_layer=3, n_head=2, n_positions=40, vocab_size=99, scale_attn_by_inverse_layer_idx=True,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model, inputs = transformers.GPT2LMHeadModel(config).eval(), {"input_ids": torch.randint(3, 99, (2, 9))}
    plan = without(niwaki.search_space(model, inputs, erase=True), ("transformer.h.1.",))
    small: Any = niwaki.cut(model, plan)
    assert niwaki.check(model, plan, inputs).holds and len(small.transformer.h) == 2
    assert torch.equal(greedy(small, inputs, cache=True), greedy(small, inputs, cache=False))
    with pytest.raises(FileFormatError, match=r"transformer\.h\.1\.attn\.scaling is .* and in a model built from the"):
        small.save_pretrained("nowhere")


def test_layers_leave_one_after_the_other() -> None:
    """In training, the configuration follows each time; entries of its lists go with their layers."""
    model, inputs = built("Gemma2")
    space = niwaki.search_space(model, inputs, erase=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    model(**inputs).logits.sum().backward()
    for layers, kinds in (((0,), "full sliding full"), ((0, 3), "full sliding")):
        plan = without(space, [f"model.layers.{layer}." for layer in layers])
        expected = niwaki.cut(built("Gemma2")[0], plan)(**inputs).logits
        niwaki.zero_(model, plan)
        niwaki.shrink(model, plan, optimizer)
        assert model.config.layer_types == [f"{kind}_attention" for kind in kinds.split()]
        assert model.config.num_hidden_layers == len(model.model.layers) == len(kinds.split())
        assert torch.equal(model(**inputs).logits, expected)
    assert len(optimizer.param_groups[0]["params"]) == len(list(model.parameters()))
