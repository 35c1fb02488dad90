"""The configuration of a cut model follows, its own save_pretrained saves or refuses, and can_save tells beforehand."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_families import FAMILIES, build, uniform

import niwaki
from niwaki.errors import FileFormatError, MethodError
from niwaki.networks.torchvision_cpu import load

load()
transformers = pytest.importorskip("transformers")
from niwaki import huggingface  # noqa: E402

SHARES = (0.7, 0.4)


def _plan(space: niwaki.SearchSpace, share: float, criterion: str = "random") -> niwaki.Plan:
    return niwaki.choose(space, niwaki.score(space, criterion), niwaki.Budget(params=share))


def _cut(model: Any, inputs: Any, share: float = 0.6, **options: Any) -> Any:
    space = niwaki.search_space(model, inputs, **options)
    return niwaki.cut(model, _plan(space, share))


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - {"MT5", "Mistral"}))  # as T5 and Qwen2
def test_what_can_be_saved_is_told_before_and_saved_after(name: str, tmp_path: Path) -> None:
    space, inputs = uniform(name), FAMILIES[name][2]()
    model: Any = space.model
    answer = huggingface.can_save(space)
    assert bool(answer) is (not FAMILIES[name][4]) and bool(answer) is not bool(answer.ignored)
    if answer.ignored:
        assert f"Pass ignored={list(answer.ignored)!r} to niwaki.search_space" in str(answer)
        space = niwaki.search_space(model, inputs, layout="uniform", ignored=answer.ignored)
        answer = huggingface.can_save(space)
    assert answer and "can be saved as an ordinary" in str(answer)
    for share in SHARES:
        small: Any = niwaki.cut(model, niwaki.choose(space, niwaki.score(space, "random"), niwaki.Budget(units=share)))
        huggingface.save_pretrained(small, tmp_path / f"{share}", inputs)
        own = tmp_path / f"own{share}"
        try:
            small.save_pretrained(own)
        except FileFormatError as refused:  # norms of queries and keys keep their epsilon
            assert name == "Qwen3" and "niwaki.huggingface.save_pretrained(small, directory) scales" in str(refused)
            continue
        loaded = type(model).from_pretrained(own).eval()
        with torch.no_grad():
            assert torch.allclose(loaded(**inputs).logits, small(**inputs).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("width", "heads", "groups"), [(64, 8, 4), (36, 9, 3)])
def test_widths_are_multiples_of_the_heads_where_the_configuration_checks_that(
    width: int, heads: int, groups: int, tmp_path: Path
) -> None:
    config = transformers.LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=groups,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    inputs = FAMILIES["Llama"][2]()["input_ids"] % 64
    space = niwaki.search_space(model, {"input_ids": inputs}, layout="uniform")
    for criterion in ("random", "magnitude"):
        for share in (0.8, 0.5, 0.3):
            plan = _plan(space, share, criterion)
            small: Any = niwaki.cut(model, plan)
            assert small.config.hidden_size % small.config.num_attention_heads == 0
            assert small.config.hidden_size == small.model.embed_tokens.embedding_dim
            huggingface.save_pretrained(small, tmp_path / f"{criterion}{share}", {"input_ids": inputs})


def test_free_layouts_and_foreign_models() -> None:
    model, inputs = build("Llama"), FAMILIES["Llama"][2]()
    answer = huggingface.can_save(niwaki.search_space(model, inputs))
    assert answer.layout == "uniform" and not answer.ignored
    assert "Pass layout='uniform' to niwaki.search_space, or use niwaki.save" in str(answer)
    answer = huggingface.can_save(niwaki.search_space(torch.nn.Linear(3, 3), torch.randn(2, 3)))
    assert answer.reasons == ("The model is not one of transformers.",)
    answer = huggingface.can_save(niwaki.search_space(_neox(), inputs))
    assert "does not know which numbers of a 'gpt_neox' configuration follow the cut" in str(answer)
    with pytest.raises(MethodError, match="space is a"):
        huggingface.can_save(model)


def _neox() -> Any:
    options = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
    return transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**options, intermediate_size=48)).eval()


def test_the_own_save_pretrained_refuses_what_cannot_be_loaded(tmp_path: Path) -> None:
    inputs = FAMILIES["Bert"][2]()
    for model in (build("Bert"), _neox()):
        kind = model.config.model_type
        small = _cut(model, inputs, layout="uniform")
        for one in (small, copy.deepcopy(small), pickle.loads(pickle.dumps(small)), small.base_model):
            with pytest.raises(FileFormatError, match="This network cannot be expressed in a config.json"):
                one.save_pretrained(tmp_path / kind)
        assert not (tmp_path / kind).exists()
        model.save_pretrained(tmp_path / f"dense_{kind}")  # nothing is wrong with it
        # Trainers give the weights: their checkpoints are for the network that is there.
        for weights in (small.state_dict(), None):
            with pytest.warns(UserWarning, match="from_pretrained will not load what is written to"):
                small.save_pretrained(tmp_path / kind, state_dict=weights)
        assert (tmp_path / kind / "model.safetensors").exists()
        gc.collect()
        gc.disable()  # what refuses does not keep the network
        try:
            gone = weakref.ref(small)
            del small, one
            assert gone() is None
        finally:
            gc.enable()


def test_what_a_cut_leaves_alone_saves_as_before(tmp_path: Path) -> None:
    class Both(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text, self.head = _neox(), torch.nn.Sequential(torch.nn.Linear(5, 9), torch.nn.Linear(9, 2))

        def forward(self, input_ids: torch.Tensor, x: torch.Tensor) -> Any:
            return self.text(input_ids).logits.sum() + self.head(x)

    inputs = {**FAMILIES["Bert"][2](), "x": torch.randn(2, 5)}
    small = _cut(Both().eval(), inputs, 0.998, ignored=["text"])
    assert small.head[0].out_features < 9
    small.text.save_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "config.json").exists()


def test_shrinking_gives_the_model_a_configuration_of_its_own(tmp_path: Path) -> None:
    model, inputs = build("Llama"), FAMILIES["Llama"][2]()
    mine, heads = model.config, model.config.num_attention_heads
    space = niwaki.search_space(model, inputs, layout="uniform")
    niwaki.shrink(model, _plan(space, 0.4))
    assert mine.num_attention_heads == heads and mine.hidden_size == 32
    assert model.config.hidden_size == model.model.embed_tokens.weight.shape[1] < 32
    assert model.model.config is model.config
    model.save_pretrained(tmp_path / "out")
    loaded = type(model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, rtol=1e-4, atol=1e-4)
