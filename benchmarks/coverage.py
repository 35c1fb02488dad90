"""How much of networks of real size can leave: the share of the parameters that lie in at least one unit.

python benchmarks/coverage.py [--match llama] [--kind transformer] [--as-graph]

Language models live on the meta device, so that they need no weights. Embedding tables do
not count for transformers: their rows are looked up by number, and only their width could ever go. One column
allows inexact units, the width across a LayerNorm above all; one (--as-graph) is that of the exported program, "-"
where a network cannot be exported.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import niwaki
from niwaki.networks.torchvision_cpu import load

load()

import timm  # noqa: E402
import torchvision  # noqa: E402
import transformers  # noqa: E402

CNN = "CNN with BatchNorm"
TRANSFORMER = "transformer"


@dataclass(frozen=True)
class Entry:
    """A network of its usual size."""

    kind: str
    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Any]


def entries() -> Iterator[Entry]:
    """The networks; a configuration is the library's default one unless given."""
    for name in (
        "resnet18 resnet50 resnext50_32x4d wide_resnet50_2 densenet121 mobilenet_v2 mobilenet_v3_large efficientnet_b0 "
        "efficientnet_v2_s regnet_x_400mf regnet_y_400mf shufflenet_v2_x1_0 mnasnet1_0 vgg16_bn googlenet inception_v3"
    ).split():
        size = 299 if name == "inception_v3" else 224
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        yield Entry(CNN, f"torchvision {name}", _call(torchvision.models.get_model, name, **more), _image(size))
    for (
        name
    ) in "dla34 hrnet_w18 cspresnet50 repvgg_a0 ghostnet_100 res2net50_26w_4s dpn68 rexnet_100 vovnet39a".split():
        yield Entry(CNN, f"timm {name}", _call(timm.create_model, name), _image(224))
    for name in (
        "vit_base_patch16_224 deit_base_patch16_224 swin_tiny_patch4_window7_224 beit_base_patch16_224 mixer_b16_224 "
        "cait_s24_224 pvt_v2_b2 twins_svt_small xcit_small_12_p8_224 eva02_base_patch14_224"
    ).split():
        size = timm.get_pretrained_cfg(name).input_size[-1]
        yield Entry(TRANSFORMER, f"timm {name}", _call(timm.create_model, name), _image(size))
    for kind, more in (
        ("BertModel", {}),
        ("RobertaModel", {}),
        ("ElectraModel", {"embedding_size": 768, "hidden_size": 768, "num_attention_heads": 12}),
        ("DistilBertModel", {}),
        ("DebertaV2Model", {}),
        ("GPT2LMHeadModel", {}),
        ("GPTNeoXForCausalLM", {}),
        ("OPTForCausalLM", {}),
        ("BloomForCausalLM", {"hidden_size": 1024, "n_layer": 24, "n_head": 16}),
        ("FalconForCausalLM", {}),
        ("LlamaForCausalLM", {}),
        ("MistralForCausalLM", {}),
        ("Qwen2ForCausalLM", {}),
        ("Qwen3ForCausalLM", {}),
        ("GemmaForCausalLM", {}),
        ("PhiForCausalLM", {}),
        ("Phi3ForCausalLM", {}),
        ("MixtralForCausalLM", {}),
    ):
        yield Entry(TRANSFORMER, f"transformers {kind}", _transformer(kind, **more), _tokens)
    for kind in ("T5Model", "BartModel"):
        yield Entry(TRANSFORMER, f"transformers {kind}", _transformer(kind), _pairs)
    yield Entry(TRANSFORMER, "transformers ViTModel", _transformer("ViTModel"), _pixels)


def _call(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], nn.Module]:
    return lambda: function(*args, **kwargs)


def _transformer(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        model = getattr(transformers, kind)
        return model(model.config_class(**settings))  # type: ignore[no-any-return]

    return build


def _image(size: int) -> Callable[[], torch.Tensor]:
    return lambda: torch.randn(1, 3, size, size)


def _tokens() -> dict[str, Any]:
    return {"input_ids": torch.ones(1, 8, dtype=torch.int64), "use_cache": False}


def _pairs() -> dict[str, Any]:
    return _tokens() | {"decoder_input_ids": torch.ones(1, 8, dtype=torch.int64)}


def _pixels() -> dict[str, Any]:
    return {"pixel_values": torch.randn(1, 3, 224, 224)}


def coverage(space: niwaki.SearchSpace, model: nn.Module, embeddings: bool) -> float:
    """The share of the parameters in at least one unit; those of embedding tables only if ``embeddings``."""
    tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    pinned: dict[str, dict[int, int]] = {}
    for pin in space.pins:
        dims = pinned.setdefault(pin.parameter, {})
        dims[pin.dim] = dims.get(pin.dim, 0) + pin.count
    inside, everything = 0.0, 0
    for name, parameter in model.named_parameters():
        if embeddings or id(parameter) not in tables:
            outside = 1.0
            for dim, size in enumerate(parameter.shape):
                outside *= pinned.get(name, {}).get(dim, 0) / size
            inside += parameter.numel() * (1 - outside)
            everything += parameter.numel()
    return inside / max(everything, 1)


def main() -> None:
    """Print a row per network and the means by kind."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--match", default="", help="only names that contain this regular expression")
    parser.add_argument("--kind", default="", help="only kinds that contain this")
    parser.add_argument("--as-graph", action="store_true", help="export the networks, too, and analyse the programs")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160)
    table = Table(
        *("kind", "network", "parameters", "coverage", "with inexact units", "as graph", "analysis CPU s", "costs most")
    )
    means: dict[str, list[Figures]] = {}
    for entry in entries():
        if re.search(options.match, entry.name) and options.kind in entry.kind:
            row, figures = _row(entry, options.as_graph)
            means.setdefault(entry.kind, []).append(figures)
            table.add_row(*row)
            console.print(*row, sep="  ", markup=False, highlight=False)
    for kind, figures_of_kind in means.items():
        columns = zip(*figures_of_kind, strict=True)
        table.add_row(kind, f"mean of {len(figures_of_kind)}", "", *(_mean(column) for column in columns), "", "")
    console.print(table)


Figures = tuple[float, float, float | None]  # coverage; with inexact units; of the program, if there is one


def _mean(column: tuple[float | None, ...]) -> str:
    known = [figure for figure in column if figure is not None]
    return f"{sum(known) / len(known):.3f}" if known else "-"


def _of_program(model: nn.Module, inputs: Any, embeddings: bool) -> float | None:
    try:
        return coverage(niwaki.search_space(model, inputs, as_graph=True), model, embeddings)
    except niwaki.errors.TraceError:
        return None


def _row(entry: Entry, as_graph: bool) -> tuple[tuple[str, ...], Figures]:
    with torch.device("meta" if entry.name.startswith("transformers") else "cpu"):
        model = entry.build().eval()
    embeddings = entry.kind != TRANSFORMER
    start = time.process_time()
    space = niwaki.search_space(model, entry.inputs())
    seconds = time.process_time() - start
    loose = niwaki.search_space(model, entry.inputs(), allow_inexact=True)
    exact, inexact = coverage(space, model, embeddings), coverage(loose, model, embeddings)
    graph = _of_program(model, entry.inputs(), embeddings) if as_graph else None
    sizes = dict(model.named_parameters())
    lost: dict[str, float] = {}
    for pin in space.pins:
        share = pin.count / max(sizes[pin.parameter].shape[pin.dim], 1)
        lost[pin.reason] = lost.get(pin.reason, 0) + share * sizes[pin.parameter].numel()
    worst = max(lost, key=lambda reason: lost[reason], default="")
    total = sum(parameter.numel() for parameter in sizes.values())
    figures = (exact, inexact, graph)
    shown = ["-" if figure is None else f"{figure:.3f}" for figure in figures]
    return (entry.kind, entry.name, f"{total:,}", *shown, f"{seconds:.1f}", worst[:70]), figures


if __name__ == "__main__":
    main()
