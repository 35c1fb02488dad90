"""LHSPG on peft's own layers: a small Llama, and the one of 260,032 parameters where its weights are at hand."""

from __future__ import annotations

import copy
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import niwaki
from niwaki.methods.lora.pairs import find_pairs
from niwaki.networks.torchvision_cpu import load
from niwaki.surgery.zero import zeroed

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TINY = {
    "vocab_size": 19,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "tie_word_embeddings": True,
}


@pytest.fixture(scope="module")
def peft() -> Any:
    pytest.importorskip("transformers")
    if find_spec("peft") is None:
        pytest.skip("peft is not installed: pip install peft")
    load()  # transformers imports torchvision
    import peft

    return peft


def stories(peft: Any) -> Any:
    folder = Path(os.environ.get("NIWAKI_DATA", ""), "weights", "stories260K")
    if not (folder / "config.json").exists():
        pytest.skip("NIWAKI_DATA names no folder that holds weights/stories260K")
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM.from_pretrained(folder)


def tiny(peft: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(**TINY)).double()


def adapted(peft: Any, model: nn.Module, **options: Any) -> Any:
    return peft.get_peft_model(model, peft.LoraConfig(r=3, lora_alpha=6, target_modules=TARGETS, **options))


def inputs(model: Any) -> dict[str, Any]:
    vocabulary = model.config.vocab_size
    tokens = torch.randint(0, vocabulary, (4, 12), generator=torch.Generator().manual_seed(1))
    return {"input_ids": tokens, "use_cache": False}


def logits(model: Any, batch: dict[str, Any]) -> Tensor:
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("build", [tiny, stories])
@pytest.mark.parametrize("share", [0.8])
def test_fine_tuned_pruned_merged_and_cut(build: Any, share: float, peft: Any) -> None:
    base = build(peft)
    dense = sum(p.numel() for p in base.parameters())
    model = adapted(peft, base, lora_dropout=0.1)
    batch = inputs(model)
    space = niwaki.search_space(model, batch)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)

    def loss() -> Tensor:
        return model(**batch, labels=batch["input_ids"]).loss

    schedule = niwaki.Schedule(start=2, until=8, periods=2)
    method = niwaki.LHSPG(space, optimizer, niwaki.Budget(params=share), schedule, loss=loss)
    model.train()
    for _ in range(10):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    plan = method.plan()
    assert method.progress.phase == "done" and method.progress.zero == method.progress.marked > 3
    for pair in find_pairs(space):
        size = pair.weight.shape[0]
        gone = sorted(set(range(size)) - set(plan.tensors.get(pair.names[0], {}).get(0, range(size))))
        assert not pair.weight[gone].any() and not pair.b[gone].any()
    small = niwaki.cut(model, plan)
    tolerance = 1e-6 if model.dtype == torch.float64 else 1e-4  # the norms compute in float32 by name
    reference = logits(copy.deepcopy(zeroed(model, plan)).merge_and_unload(), batch)
    for one in (small, copy.deepcopy(small).merge_and_unload(), model):
        assert (logits(one, batch) - reference).abs().max() <= tolerance * reference.abs().max()
    plain = copy.deepcopy(small).merge_and_unload()
    assert not any("lora" in name for name, _ in plain.named_parameters())
    params = sum(p.numel() for p in plain.parameters())
    assert params <= share * dense and params == plan.provenance["kept"]["params"]
    assert plan.provenance["dense"]["params"] == dense


def test_saved_with_its_adapters_and_loaded(peft: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = adapted(peft, tiny(peft))
    space = niwaki.search_space(model, inputs(model))
    plan = niwaki.choose(space, niwaki.score(space, "random"), niwaki.Budget(params=0.6))
    small = niwaki.cut(model, plan)
    niwaki.save(small, tmp_path / "out")
    again = niwaki.load(adapted(peft, tiny(peft)), tmp_path / "out")
    assert torch.equal(logits(again, inputs(model)), logits(small, inputs(model)))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"use_dora": True}, "has the parameters 'lora_magnitude_vector' too, so that its weight is not W"),
        ({"lora_bias": True}, "lora_A or lora_B has more than a weight"),
    ],
)
def test_what_is_no_plain_pair_is_refused(options: dict[str, Any], told: str, peft: Any) -> None:
    base = tiny(peft)
    for module in list(base.modules()):
        for name, child in list(module.named_children()):
            if name in TARGETS and options.get("lora_bias"):
                setattr(module, name, nn.Linear(child.in_features, child.out_features, dtype=torch.float64))
    model = adapted(peft, base, **options)
    space = niwaki.search_space(model, inputs(model), rehearse=False)
    with pytest.raises(niwaki.NiwakiError, match=told):
        find_pairs(space)
    plain = adapted(peft, tiny(peft))
    space = niwaki.search_space(plain, inputs(plain), rehearse=False)
    plain.merge_adapter()
    with pytest.raises(niwaki.NiwakiError, match="its adapter is merged already: unmerge it first"):
        find_pairs(space)
