"""Cut networks as ordinary Hugging Face checkpoints: they load in a process that has never heard of niwaki."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_families import FAMILIES, build, uniform
from huggingface_fresh import greedy, in_a_fresh_process

import niwaki
from niwaki.errors import FileFormatError
from niwaki.networks.torchvision_cpu import load

load()
transformers = pytest.importorskip("transformers")
from niwaki import huggingface  # noqa: E402

CONFIGURES_LAYERS = hasattr(transformers.PretrainedConfig, "is_heterogeneous")  # sizes of single layers


def cut(name: str, every: int = 2) -> tuple[Any, dict[str, Any]]:
    """Every so manieth unit of each group stays."""
    space, inputs = uniform(name, FAMILIES[name][4]), FAMILIES[name][2]()
    keep = np.zeros(space.num_units, dtype=bool)
    for group in space.groups:
        keep[group.first : group.first + group.units : every] = True
    return niwaki.cut(space.model, space.plan(keep)), inputs


@pytest.mark.parametrize("macs", [0.8, 0.6])
def test_chosen_widths_fit_a_configuration(macs: float, tmp_path: Path) -> None:
    """T5 attends to itself and to another sequence in modules of one class, of which only some hold biases: one number
    of heads for all."""
    space = uniform("T5")
    small: Any = niwaki.cut(
        space.model, niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(macs=macs))
    )
    huggingface.save_pretrained(small, tmp_path / "out", FAMILIES["T5"][2]())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_heads"] < space.model.config.num_heads


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("Bert", "Qwen3", "T5"), id="some"),  # no generation; scaled norms; two sequences
        pytest.param(tuple(FAMILIES), id="all", marks=pytest.mark.slow),
    ],
)
def test_families_load_without_niwaki(names: tuple[str, ...], tmp_path: Path) -> None:
    made = {name: cut(name) for name in names}
    for name, (small, inputs) in made.items():
        before = {key: value.clone() for key, value in small.state_dict().items()}
        dense, told = build(name).config.to_dict(), small.config.to_dict()
        huggingface.save_pretrained(small, tmp_path / name, inputs)
        assert small.config.to_dict() == told
        assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())
        assert {"config.json", "model.safetensors"} <= {entry.name for entry in (tmp_path / name).iterdir()}
        config = json.loads((tmp_path / name / "config.json").read_text())
        for key in FAMILIES[name][5]:
            assert config[key] == (dense[key] or 128) // 2, key
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(names)
    found = in_a_fresh_process({tmp_path / name: (FAMILIES[name][3], inputs) for name, (_, inputs) in made.items()})
    for name, (small, inputs) in made.items():
        outputs = found[tmp_path / name]
        with torch.no_grad():
            logits = small(**inputs).logits
        assert torch.allclose(outputs["logits"], logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max())), name
        assert ("tokens" in outputs) == (name not in ("ViT", "Bert"))
        if "tokens" in outputs:
            assert torch.equal(outputs["tokens"], greedy(small, inputs, cache=True))
            assert torch.equal(outputs["tokens"], greedy(small, inputs, cache=False))


def test_scaled_norms_keep_their_epsilon() -> None:
    """Qwen3's norms of queries and keys keep their width, and with it their epsilon, of which the config has one."""
    small, inputs = cut("Qwen3")
    epsilons = {m.variance_epsilon for n, m in small.named_modules() if n.endswith("norm")}
    assert len(epsilons) == 2
    config, state = huggingface.described(small, huggingface.FAMILIES["qwen3"])
    assert config.rms_norm_eps == max(epsilons)
    name = "model.layers.0.self_attn.q_proj.weight"
    factor = (max(epsilons) / min(epsilons)) ** 0.5
    assert torch.allclose(state[name], small.state_dict()[name] * factor)
    assert torch.equal(state["model.embed_tokens.weight"], small.state_dict()["model.embed_tokens.weight"])


@pytest.mark.parametrize("name", ["Qwen3", "T5"])
def test_what_differs_by_layer_is_told_and_generates_all_the_same(name: str, tmp_path: Path) -> None:
    model, inputs = build(name), FAMILIES[name][2]()
    space = niwaki.search_space(model, inputs)
    keep = np.ones(space.num_units, dtype=bool)
    for number, group in enumerate(space.groups):
        keep[group.first + group.units // 2 : group.first + group.units - number % 3] = False
    small = niwaki.cut(model, space.plan(keep))
    with pytest.raises(FileFormatError, match=r"This network cannot be expressed in a config.json: .* use niwaki.save"):
        huggingface.save_pretrained(small, tmp_path / "out")
    assert not list(tmp_path.iterdir())
    niwaki.save(small, tmp_path / "out")
    model.config.save_pretrained(tmp_path / "out")
    fresh = type(model)(type(model.config).from_pretrained(tmp_path / "out")).eval()
    loaded = niwaki.load(fresh, tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, small(**inputs).logits)  # type: ignore[operator]
    made = greedy(loaded, inputs, cache=True)
    assert torch.equal(made, greedy(small, inputs, cache=False))
    assert made.shape[1] > 6


def test_messages_name_the_tensor_or_layer(tmp_path: Path) -> None:
    for name, message in (
        ("GPT2", "'transformer.h.0.attn.c_attn.weight' has the shape .* and a model built from the configuration has"),
        ("Bert", "'bert.encoder.layer.0.attention.self.query.weight' has the shape"),
    ):
        space = uniform(name)
        plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.4))
        small: Any = niwaki.cut(space.model, plan)
        with pytest.raises(FileFormatError, match=message):
            huggingface.save_pretrained(small, tmp_path / "out")
    llama, inputs = build("Llama"), FAMILIES["Llama"][2]()
    space = niwaki.search_space(llama, inputs)
    keep = np.ones(space.num_units, dtype=bool)
    group = next(group for group in space.groups if "layers.1.mlp" in group.name)
    keep[group.first : group.first + 5] = False
    wide = niwaki.cut(llama, space.plan(keep))
    by_layer = "intermediate_size would have to be 48 for 'layer 0' and 43 for 'layer 1'"
    by_tensor = "'model.layers.1.mlp.gate_proj.weight' has the shape"
    with pytest.raises(FileFormatError, match=by_layer if CONFIGURES_LAYERS else by_tensor):
        huggingface.save_pretrained(wide, tmp_path / "out")
    llama.model.layers[0].self_attn.scaling = 0.5
    with pytest.raises(FileFormatError, match=r"model.layers.0.self_attn.scaling is 0.5, and in a model built"):
        huggingface.save_pretrained(llama, tmp_path / "out")
    llama.model.layers[0].self_attn.scaling = 8**-0.5
    llama.model.layers[1].input_layernorm.variance_epsilon = 0.1
    with pytest.raises(FileFormatError, match="rms_norm_eps would have to be 0.01 for .* and 0.1 for 'model.layers.1"):
        huggingface.save_pretrained(llama, tmp_path / "out")
    llama.model.layers[1].input_layernorm.variance_epsilon = 0.01
    space = niwaki.search_space(llama, inputs)
    keep = np.ones(space.num_units, dtype=bool)
    keep[space.groups[0].first] = False
    narrow = niwaki.cut(llama, space.plan(keep))
    if CONFIGURES_LAYERS:  # so recent a version also checks what a configuration says
        with pytest.raises(FileFormatError, match=r"hidden size \(31\) is not a multiple of the number of attention"):
            huggingface.save_pretrained(narrow, tmp_path / "out")
    llama.config.model_type = "lama"
    with pytest.raises(
        FileFormatError, match="does not know which numbers of a 'lama' configuration .*bert, gpt2, llama"
    ):
        huggingface.save_pretrained(llama, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_difference_that_no_tensor_shows_is_found(tmp_path: Path) -> None:
    llama, inputs = build("Llama"), FAMILIES["Llama"][2]()
    llama.model.layers[0].mlp.act_fn = torch.nn.ReLU()
    with pytest.raises(FileFormatError, match="output 0 of the model that was written differs by"):
        huggingface.save_pretrained(llama, tmp_path / "out", inputs)
    assert not list(tmp_path.iterdir())


def test_a_directory_that_is_there_is_written_into(tmp_path: Path) -> None:
    small, inputs = cut("Llama")
    (tmp_path / "tokenizer.json").write_text("mine")
    huggingface.save_pretrained(small, tmp_path)
    smaller, _ = cut("Llama", every=4)
    huggingface.save_pretrained(smaller.bfloat16(), tmp_path)
    assert (tmp_path / "tokenizer.json").read_text() == "mine"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.dtype == torch.bfloat16
    with torch.no_grad():
        # Converting a model converts its tables of rotations too; loading one in half precision computes them afresh.
        assert torch.allclose(loaded(**inputs).logits, smaller(**inputs).logits, rtol=0, atol=0.05)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileFormatError, match="Cannot save to '.*file/x'"):
        huggingface.save_pretrained(small, tmp_path / "file" / "x")


def test_a_trained_llama_with_grouped_queries(tmp_path: Path) -> None:
    """stories260K: the cut models, uniform and not, tell the same stories with the cache as without."""
    folder = Path(os.environ.get("NIWAKI_DATA", ""), "weights", "stories260K")
    if not (folder / "config.json").exists():
        pytest.skip("NIWAKI_DATA names no folder that holds weights/stories260K")
    model = transformers.LlamaForCausalLM.from_pretrained(folder).eval()
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    inputs = {"input_ids": torch.tensor([[1, 403, 407, 261, 378]])}
    for layout in ("uniform", "free"):
        space = niwaki.search_space(model, inputs, layout=layout)  # type: ignore[arg-type]
        plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(params=0.7))
        small = niwaki.cut(model, plan)
        told = greedy(small, inputs, cache=True)
        assert torch.equal(told, greedy(small, inputs, cache=False))
        if layout == "uniform":
            huggingface.save_pretrained(small, tmp_path, inputs)
            found = in_a_fresh_process({tmp_path: ("AutoModelForCausalLM", inputs)})[tmp_path]
            assert torch.equal(found["tokens"], told)
            with torch.no_grad():
                assert torch.allclose(found["logits"], small(**inputs).logits, rtol=1e-4, atol=1e-4)


class HeterogeneousConfig(transformers.PretrainedConfig):
    """Of a model that this version of transformers can build with layers of different widths."""

    model_type = "heterogeneous"

    def __init__(self, intermediate_size: int = 12, num_hidden_layers: int = 2, **options: Any) -> None:
        self.intermediate_size, self.num_hidden_layers = intermediate_size, num_hidden_layers
        super().__init__(**options)


class Heterogeneous(transformers.PreTrainedModel):
    config_class = HeterogeneousConfig

    def __init__(self, config: HeterogeneousConfig) -> None:
        super().__init__(config)
        configs = [config.per_layer_config[i] if config.is_heterogeneous else config for i in range(2)]
        self.layers = torch.nn.ModuleList()
        for layer in configs:
            size = layer.intermediate_size
            self.layers.append(torch.nn.Sequential(torch.nn.Linear(6, size), torch.nn.ReLU(), torch.nn.Linear(size, 6)))
        self.post_init()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = x + layer(x)
        return x


@pytest.mark.skipif(not CONFIGURES_LAYERS, reason="this version of transformers has one number for all layers")
def test_layers_of_different_widths_where_transformers_builds_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (huggingface.Size("intermediate_size", r"layers\.(\d+)\.0\.weight", 0),)
    monkeypatch.setitem(huggingface.FAMILIES, "heterogeneous", huggingface.Family(sizes))
    model, x = Heterogeneous(HeterogeneousConfig()).eval(), torch.randn(2, 6)
    space = niwaki.search_space(model, x)
    keep = np.ones(space.num_units, dtype=bool)
    for number, group in enumerate(space.groups):
        keep[group.first : group.first + 3 + number] = False
    small = niwaki.cut(model, space.plan(keep))
    huggingface.save_pretrained(small, tmp_path / "out", x)
    loaded = Heterogeneous.from_pretrained(tmp_path / "out").eval()
    assert [layer[0].out_features for layer in loaded.layers] == [9, 8]
    assert torch.equal(loaded(x), small(x))
