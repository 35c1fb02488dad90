"""Networks of transformers at their default or published depth, each beside a twin of two layers of every kind.

    nice -n 15 python -m benchmarks.depth results.jsonl [--match deepseek] [--again]

Parameters are on the meta device, each network in a process of its own, one after another. A line of JSON per network:
CPU seconds of `niwaki.search_space`, coverage at both depths, and every dimension of a repeated layer of which fewer
positions can leave in the deep network than in its twin, tensor by tensor (layers are told apart by the shapes that
they have). Networks that are in the file already are skipped. The last line sums up.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import subprocess
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

_TWO: dict[str, Any] = {"num_hidden_layers": 2}
_BOTH: dict[str, Any] = {"encoder_layers": 2, "decoder_layers": 2}
_TEXT = "text"
_IMAGE = "image"
_Settings = dict[str, Any]

# Class, settings of the deep one (the library's own where nothing is said), settings of the twin, inputs.
NETWORKS: dict[str, tuple[str, _Settings, _Settings, str]] = {
    "llama": ("LlamaForCausalLM", {}, _TWO, _TEXT),
    "mistral": ("MistralForCausalLM", {}, _TWO, _TEXT),
    "qwen2": ("Qwen2ForCausalLM", {}, _TWO, _TEXT),
    "qwen3": ("Qwen3ForCausalLM", {}, _TWO, _TEXT),
    "gemma": ("GemmaForCausalLM", {}, _TWO, _TEXT),
    "gemma2": ("Gemma2ForCausalLM", {}, _TWO, _TEXT),
    "gemma3": ("Gemma3ForCausalLM", {}, {"num_hidden_layers": 8}, _TEXT),
    "phi": ("PhiForCausalLM", {}, _TWO, _TEXT),
    "phi3": ("Phi3ForCausalLM", {}, _TWO, _TEXT),
    "gpt2": ("GPT2LMHeadModel", {}, {"n_layer": 2}, _TEXT),
    "gpt_neo": ("GPTNeoForCausalLM", {}, {"num_layers": 2, "attention_types": [[["global", "local"], 1]]}, _TEXT),
    "gpt_neox": ("GPTNeoXForCausalLM", {}, _TWO, _TEXT),
    "gptj": ("GPTJForCausalLM", {}, {"n_layer": 2}, _TEXT),
    "opt": ("OPTForCausalLM", {}, _TWO, _TEXT),
    "bloom": ("BloomForCausalLM", {"n_layer": 24, "n_head": 16, "hidden_size": 1024}, {"n_layer": 2}, _TEXT),
    "falcon": ("FalconForCausalLM", {}, _TWO, _TEXT),
    "mpt": ("MptForCausalLM", {}, {"n_layers": 2}, _TEXT),
    "stablelm": ("StableLmForCausalLM", {}, _TWO, _TEXT),
    "cohere": ("CohereForCausalLM", {}, _TWO, _TEXT),
    "olmo2": ("Olmo2ForCausalLM", {}, _TWO, _TEXT),
    "granite": ("GraniteForCausalLM", {}, _TWO, _TEXT),
    "glm4": ("Glm4ForCausalLM", {}, _TWO, _TEXT),
    "starcoder2": ("Starcoder2ForCausalLM", {}, _TWO, _TEXT),
    "nemotron": ("NemotronForCausalLM", {"num_key_value_heads": 8}, _TWO, _TEXT),
    "mixtral": ("MixtralForCausalLM", {}, _TWO, _TEXT),
    "qwen2_moe": ("Qwen2MoeForCausalLM", {}, _TWO, _TEXT),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {"num_hidden_layers": 48}, _TWO, _TEXT),
    "olmoe": ("OlmoeForCausalLM", {}, _TWO, _TEXT),
    "gpt_oss": ("GptOssForCausalLM", {}, _TWO, _TEXT),
    "deepseek_v2": (
        "DeepseekV2ForCausalLM",
        {
            **{"num_hidden_layers": 60, "first_k_dense_replace": 1, "hidden_size": 5120, "intermediate_size": 12288},
            **{"moe_intermediate_size": 1536, "num_attention_heads": 128, "num_key_value_heads": 128},
            **{"q_lora_rank": 1536, "n_routed_experts": 160, "num_experts_per_tok": 6, "n_group": 8, "topk_group": 3},
            "topk_method": "group_limited_greedy",
        },
        {"num_hidden_layers": 3},
        _TEXT,
    ),
    "deepseek_v2_lite": (
        "DeepseekV2ForCausalLM",
        {
            **{"num_hidden_layers": 27, "first_k_dense_replace": 1, "hidden_size": 2048, "intermediate_size": 10944},
            **{"moe_intermediate_size": 1408, "num_attention_heads": 16, "num_key_value_heads": 16},
            **{"q_lora_rank": None, "n_routed_experts": 64, "num_experts_per_tok": 6, "topk_method": "greedy"},
        },
        {"num_hidden_layers": 3},
        _TEXT,
    ),
    "deepseek_v3": ("DeepseekV3ForCausalLM", {}, {"num_hidden_layers": 4, "first_k_dense_replace": 2}, _TEXT),
    "bamba": (
        "BambaForCausalLM",
        {"attn_layer_indices": [9, 18, 27]},
        {"num_hidden_layers": 2, "attn_layer_indices": [1]},
        _TEXT,
    ),
    "falcon_h1": ("FalconH1ForCausalLM", {}, _TWO, _TEXT),
    "granite_hybrid": (
        "GraniteMoeHybridForCausalLM",
        {
            "num_hidden_layers": 40,
            "layer_types": ["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
        },
        {"num_hidden_layers": 2, "layer_types": ["mamba", "attention"]},
        _TEXT,
    ),
    "jamba": ("JambaForCausalLM", {}, {"num_hidden_layers": 8}, _TEXT),
    "zamba2": (
        "Zamba2ForCausalLM",
        {},
        {"num_hidden_layers": 8, "layer_types": [*["linear_attention"] * 6, "hybrid", "linear_attention"]},
        _TEXT,
    ),
    "mamba": ("MambaForCausalLM", {"num_hidden_layers": 48}, _TWO, _TEXT),
    "mamba2": ("Mamba2ForCausalLM", {"num_hidden_layers": 64}, _TWO, _TEXT),
    "recurrent_gemma": ("RecurrentGemmaForCausalLM", {}, {"num_hidden_layers": 3}, _TEXT),
    "bert": ("BertForMaskedLM", {}, _TWO, _TEXT),
    "roberta": ("RobertaForMaskedLM", {"num_hidden_layers": 24}, _TWO, _TEXT),
    "deberta_v2": ("DebertaV2ForMaskedLM", {}, _TWO, _TEXT),
    "electra": ("ElectraForMaskedLM", {}, _TWO, _TEXT),
    "modernbert": ("ModernBertForMaskedLM", {}, {"num_hidden_layers": 6}, _TEXT),
    "t5": ("T5ForConditionalGeneration", {"num_layers": 24}, {"num_layers": 3}, "texts"),
    "bart": ("BartForConditionalGeneration", {}, _BOTH, "texts"),
    "marian": ("MarianMTModel", {}, _BOTH, "texts"),
    "pegasus": ("PegasusForConditionalGeneration", {}, _BOTH, "texts"),
    "whisper": ("WhisperForConditionalGeneration", {"encoder_layers": 12, "decoder_layers": 12}, _BOTH, "sound"),
    "wav2vec2": ("Wav2Vec2ForCTC", {}, _TWO, "wave"),
    "hubert": ("HubertForCTC", {}, _TWO, "wave"),
    "vit": ("ViTForImageClassification", {}, _TWO, _IMAGE),
    "deit": ("DeiTForImageClassification", {}, _TWO, _IMAGE),
    "beit": ("BeitForImageClassification", {}, {"num_hidden_layers": 2, "out_indices": [1, 2, 2, 2]}, _IMAGE),
    "dinov2": ("Dinov2ForImageClassification", {"num_hidden_layers": 24}, _TWO, _IMAGE),
    "siglip": ("SiglipVisionModel", {}, _TWO, _IMAGE),
    "swin": ("SwinForImageClassification", {"depths": [2, 2, 18, 2]}, {"depths": [2, 2, 2, 2]}, _IMAGE),
    "convnext": ("ConvNextForImageClassification", {"depths": [3, 3, 27, 3]}, {"depths": [2, 2, 2, 2]}, _IMAGE),
    "segformer": ("SegformerForSemanticSegmentation", {"depths": [3, 4, 18, 3]}, {"depths": [2, 2, 2, 2]}, _IMAGE),
    "vjepa2": ("VJEPA2Model", {}, {"num_hidden_layers": 2, "pred_num_hidden_layers": 2}, "video"),
    "videomae": ("VideoMAEForVideoClassification", {}, _TWO, "frames"),
    "detr": ("DetrForObjectDetection", {}, _BOTH, _IMAGE),
    "conditional_detr": ("ConditionalDetrForObjectDetection", {}, _BOTH, _IMAGE),
    "table_transformer": ("TableTransformerForObjectDetection", {}, _BOTH, _IMAGE),
    "deformable_detr": ("DeformableDetrForObjectDetection", {}, _BOTH, _IMAGE),
    "rt_detr": ("RTDetrForObjectDetection", {}, {"encoder_layers": 1, "decoder_layers": 2}, "picture"),
    "yolos": ("YolosForObjectDetection", {}, _TWO, _IMAGE),
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_Free = dict[tuple[str, tuple[int, ...], int], list[int]]


def inputs_of(kind: str, config: Any) -> dict[str, Any]:
    """What a network of ``kind`` is run on."""
    import torch

    def side(default: int) -> int:
        size = getattr(config, "image_size", default)
        return int(size if isinstance(size, int) else size[0])

    text = torch.arange(8, 24)[None]
    size = side(224)
    makers = {
        _TEXT: lambda: {"input_ids": text},
        "texts": lambda: {"input_ids": text, "decoder_input_ids": text[:, :7]},
        _IMAGE: lambda: {"pixel_values": torch.randn(1, 3, size, size)},
        "picture": lambda: {"pixel_values": torch.randn(1, 3, 640, 640)},
        "frames": lambda: {"pixel_values": torch.randn(1, config.num_frames, 3, size, size)},
        "video": lambda: {
            "pixel_values_videos": torch.randn(1, config.frames_per_clip, 3, config.crop_size, config.crop_size)
        },
        "sound": lambda: {
            "input_features": torch.randn(1, config.num_mel_bins, 2 * config.max_source_positions),
            "decoder_input_ids": text[:, :7],
        },
        "wave": lambda: {"input_values": torch.randn(1, 16_000)},
    }
    return makers[kind]()


def measure(name: str) -> dict[str, Any]:
    """The figures of one network and its twin, in this process."""
    import torch

    from niwaki.networks.torchvision_cpu import load

    load()
    import transformers

    import niwaki

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    kind, deep, twin, given = NETWORKS[name]
    found: dict[str, tuple[Any, float]] = {}
    for which, settings in (("deep", deep), ("twin", deep | twin)):
        built = getattr(transformers, kind)
        with torch.device("meta"):
            model = built(built.config_class(**settings))
        begun = time.process_time()
        space = niwaki.search_space(model, inputs_of(given, model.config))
        found[which] = space, time.process_time() - begun
    (space, seconds), (small, small_seconds) = found["deep"], found["twin"]
    worse = missing(free_positions(space), free_positions(small))
    return {
        "name": name,
        "class": kind,
        "params": space.cost().params,
        "units": space.num_units,
        "coverage": space.coverage,
        "twin_coverage": small.coverage,
        "seconds": seconds,
        "twin_seconds": small_seconds,
        "worse": worse,
        "reasons": _reasons(space, worse),
        "notes": list(space.notes),
        "peak_GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def free_positions(space: Any) -> _Free:
    """For each dimension of the parameters, alike ones of all layers together (the same name but for numbers, of one
    shape): how many positions can leave in each of them, in the order of the layers."""
    free = {(place.tensor, place.dim): int((place.units < space.num_units).any(axis=1).sum()) for place in space.dims}
    found: _Free = defaultdict(list)
    for shape in space.shapes:
        pattern = _NUMBER.sub("#", shape.name)
        for dim in range(len(shape.shape)):
            found[pattern, tuple(shape.shape), dim].append(free.get((shape.name, dim), 0))
    return found


def missing(deep: Mapping[Any, Sequence[int]], twin: Mapping[Any, Sequence[int]]) -> list[list[Any]]:
    """The dimensions of which fewer positions can leave than in the twin, in more layers than there (the first and the
    last may be others): name, dimension, how many can leave in how many layers, and in the twin."""
    found = []
    for key, counts in deep.items():
        name, shape, dim = key
        if "#" not in name or key not in twin:
            continue
        most = max(twin[key])
        if sum(count < most for count in counts) > sum(count < most for count in twin[key]):
            found.append([name, list(shape), dim, _layers(counts), _layers(twin[key])])
    return found


def _layers(counts: Sequence[int]) -> dict[str, int]:
    """How many layers there are of each number of positions."""
    return {str(free): layers for free, layers in Counter(counts).most_common()}


def _reasons(space: Any, worse: list[list[Any]]) -> list[str]:
    """Why positions of these dimensions are pinned, the most frequent first."""
    wanted = {(name, dim) for name, _, dim, *_ in worse}
    found = Counter(
        re.sub(r"\(in '.*'\)", "", f"{pin.reason} at {pin.location}")
        for pin in space.pins
        if (_NUMBER.sub("#", pin.parameter), pin.dim) in wanted
    )
    return [f"{count} x {reason}" for reason, count in found.most_common(5)]


def _line(row: Mapping[str, Any]) -> str:
    if "error" in row:
        return f"{row['name']:<20} {row['error']}"
    return (
        f"{row['name']:<20}{row['params']:>18,}{row['coverage']:>9.1%}{row['twin_coverage']:>9.1%}"
        f"{row['seconds']:>8.1f} s{row['peak_GB']:>7.2f} GB  {len(row['worse'])} dimensions worse"
    )


def main() -> None:
    """Append the line of each network to the results, then print what falls short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("results", type=Path, nargs="?", help="JSON lines; networks that are in it are skipped")
    parser.add_argument("--match", default="", help="only networks whose name contains this regular expression")
    parser.add_argument("--again", action="store_true", help="those that are in the results, too; the last line counts")
    parser.add_argument("--seconds", type=float, default=30, help="what the analysis of one network may take")
    parser.add_argument("--here", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here is not None:
        print(json.dumps(measure(options.here)))
        return
    if options.results is None:
        parser.error("name a file for the results")
    rows: dict[str, dict[str, Any]] = {}
    if options.results.exists():
        rows = {row["name"]: row for row in map(json.loads, options.results.read_text().splitlines())}
    for name in NETWORKS:
        if re.search(options.match, name) and (options.again or name not in rows):
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.depth", "--here", name], capture_output=True, text=True
            )
            rows[name] = (
                json.loads(done.stdout.splitlines()[-1])
                if done.returncode == 0
                else {
                    "name": name,
                    "error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:400],
                }
            )
            with options.results.open("a") as file:
                file.write(json.dumps(rows[name]) + "\n")
        if name in rows:
            print(_line(rows[name]), flush=True)
    fine = [row for row in rows.values() if "error" not in row and not row["worse"]]
    slow = [row["name"] for row in rows.values() if row.get("seconds", 0) > options.seconds]
    print(f"{len(fine)} of {len(rows)} as in the twin; above {options.seconds:g} s: {', '.join(slow) or 'none'}")


if __name__ == "__main__":
    main()
