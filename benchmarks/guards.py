"""What it costs to compare the traced run with an untracked one: CPU seconds of one thread, the least of several.

    python -m benchmarks.guards --repeat 3

``share``: the time of the untracked run over that of the rest of the analysis.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

import niwaki
from niwaki.networks.torchvision_cpu import load
from niwaki.trace.extent import NOTHING
from niwaki.trace.tracer import RunsToMake, example_calls, tracing

VISION = (
    "resnet18 resnet50 mobilenet_v3_small densenet121 efficientnet_b0 regnet_y_400mf shufflenet_v2_x1_0 googlenet "
    "convnext_tiny swin_t vit_b_16"
).split()


def least(work: Callable[[], object], repeat: int) -> float:
    """CPU seconds of the fastest of several runs."""
    found = []
    for _ in range(repeat):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def networks() -> dict[str, tuple[torch.nn.Module, Any]]:
    """Networks of torchvision at their usual size, and small ones of transformers."""
    models = load().models
    import transformers as hf  # imports torchvision

    image, tokens = torch.randn(1, 3, 224, 224), {"input_ids": torch.randint(1, 64, (2, 16))}
    quiet = {"googlenet": {"init_weights": False}}
    found: dict[str, tuple[torch.nn.Module, Any]] = {
        name: (getattr(models, name)(**quiet.get(name, {})), image) for name in VISION
    }
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4}
    llama = hf.LlamaConfig(**sizes, num_attention_heads=8, num_key_value_heads=4)
    bert = hf.BertConfig(**sizes, num_attention_heads=4)
    found["llama"] = hf.LlamaForCausalLM(llama), tokens
    found["bert"] = hf.BertModel(bert), tokens
    found["gpt2"] = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=64, n_embd=64, n_layer=4, n_head=4)), tokens
    return found


def main() -> None:
    """Print a row for each network, and the median share."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    repeat = parser.parse_args().repeat
    torch.set_num_threads(1)
    torch.manual_seed(0)
    table = Table("network", "forward pass, s", "analysis, s", "untracked run, s", "share")
    shares = []
    for name, (model, inputs) in networks().items():
        model.eval()
        (call,) = example_calls(inputs)

        def untracked() -> None:
            with tracing(model, RunsToMake([call])) as tracer:  # noqa: B023
                tracer.attempt(NOTHING)

        with torch.no_grad():
            forward = least(lambda: model(*call[0], **call[1]), repeat)  # noqa: B023
        plain = least(untracked, repeat)
        whole = least(lambda: niwaki.search_space(model, inputs), repeat)  # noqa: B023
        shares.append(plain / (whole - plain))
        table.add_row(name, f"{forward:.3f}", f"{whole:.3f}", f"{plain:.3f}", f"{shares[-1]:.0%}")
    console = Console()
    console.print(table)
    console.print(f"median share {statistics.median(shares):.0%}", highlight=False)


if __name__ == "__main__":
    main()
