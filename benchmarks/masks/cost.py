"""What a step of `niwaki.DDPMasks` costs beside a step of training: CPU time, and the peak memory of the process.

python -m benchmarks.masks.cost resnet|decoder train|ddp

One process for each, since a peak is that of a process. *resnet*: ResNet-50 (24 M parameters), 8 images of 64 pixels,
SGD with momentum; *decoder*: a Llama of 60 M parameters, 2 sequences of 128 tokens, AdamW. Medians of five steps.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import niwaki
from niwaki.masks.deterministic import DeterministicTraining
from niwaki.masks.latents import Latents
from niwaki.networks.torchvision_cpu import load
from niwaki.selection.budget import Budget

STEPS, MIB = 5, 1024  # the kernel counts in KiB


def resnet() -> tuple[nn.Module, Tensor, Callable[[nn.Module], Tensor], type[Any]]:
    """Images and classes."""
    model: nn.Module = load().models.resnet50(num_classes=100)
    x, y = torch.randn(8, 3, 64, 64), torch.randint(0, 100, (8,))
    return model, x[:1], lambda model: nn.functional.cross_entropy(model(x), y), torch.optim.SGD


def decoder() -> tuple[nn.Module, Tensor, Callable[[nn.Module], Tensor], type[Any]]:
    """Tokens and the next ones."""
    load()
    import transformers

    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 14, "num_attention_heads": 8}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=12_000, use_cache=False, **sizes))
    x = torch.randint(0, 12_000, (2, 128))
    return model, x[:1, :8], lambda model: model(x, labels=x).loss, torch.optim.AdamW


def main() -> None:
    """Print one line."""
    network, what = sys.argv[1:]
    torch.manual_seed(0)
    model, inputs, loss, kind = {"resnet": resnet, "decoder": decoder}[network]()
    space = niwaki.search_space(model, inputs)
    if what == "ddp":
        model.eval()
        training = DeterministicTraining(space, Latents(space), Budget(macs=0.5).absolute(space), 100)
    else:
        optimizer = kind(model.parameters(), lr=1e-3, **({"momentum": 0.9} if kind is torch.optim.SGD else {}))
    spent = []
    for step in range(STEPS):
        began = time.process_time()
        if what == "ddp":
            training.step(loss, step / 100)
        else:
            optimizer.zero_grad()
            loss(model).backward()
            optimizer.step()
        spent.append(time.process_time() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / MIB
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) / 2**20
    print(
        f"{network} {what}: {statistics.median(spent):.2f} s a step, peak {peak:,.0f} MiB, weights {weights:,.0f} MiB"
    )


if __name__ == "__main__":
    main()
