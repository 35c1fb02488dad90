"""What ``erase=True`` adds to the analysis, in the class and as a program; how long ten thousand candidates take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

import niwaki
from niwaki.networks.torchvision_cpu import load

load()

import transformers  # noqa: E402 - torchvision's operators are declared by now
from torchvision.models import resnet50  # noqa: E402

CANDIDATES = 10_000


def llama() -> tuple[nn.Module, Any]:
    """Llama-2-7B, on the meta device."""
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(num_hidden_layers=32, use_cache=False))
    return model, {"input_ids": torch.zeros(1, 16, dtype=torch.long)}


def resnet() -> tuple[nn.Module, Any]:
    """ResNet-50, on the meta device."""
    with torch.device("meta"):
        return resnet50(), torch.randn(1, 3, 224, 224, device="meta")


def resnet_with_weights() -> tuple[nn.Module, Any]:
    """ResNet-50 on the CPU, where all else costs less."""
    return resnet50(), torch.randn(1, 3, 64, 64)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Any]]] = {
    "ResNet-50 on the meta device": resnet,
    "ResNet-50 on the CPU, 64 pixels": resnet_with_weights,
    "Llama, 32 layers": llama,
}


def run(rounds: int) -> None:
    """Print the medians of paired ratios, and the seconds of the candidates."""
    torch.set_num_threads(1)
    for name, build in NETWORKS.items():
        model, inputs = build()
        model.eval()
        pairs = []
        for _ in range(rounds + 1):
            spent = [_seconds(model, inputs, erase)[0] for erase in (False, True)]
            spent.append(_seconds(model, inputs, True, as_graph=True)[0])
            pairs.append((spent[1] / spent[0], *spent, spent[2] / spent[0]))
        columns = (statistics.median(column) for column in zip(*pairs[1:], strict=True))
        ratio, without, with_erase, exported, more = columns
        space = _seconds(model, inputs, True)[1]
        erasable = sum(one.erasable for one in space.structures)
        print(
            f"{name}: {ratio:.2f} times as long with erase=True ({with_erase:.2f} s against {without:.2f} s of CPU, "
            f"medians of {rounds} pairs), {erasable} of {len(space.structures)} structures erasable; "
            f"as a program, too, {more:.2f} times ({exported:.2f} s)",
            flush=True,
        )
    print(f"{CANDIDATES} candidates of a stack of residual blocks, all erased: {candidates(CANDIDATES):.1f} s")


def _seconds(model: nn.Module, inputs: Any, erase: bool, as_graph: bool = False) -> tuple[float, niwaki.SearchSpace]:
    start = time.process_time()
    space = niwaki.search_space(model, inputs, erase=erase, as_graph=as_graph)
    return time.process_time() - start, space


class Stack(nn.Module):
    """Residual blocks of one layer each."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
        self.blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 2]."""
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)  # type: ignore[no-any-return]


def candidates(number: int) -> float:
    """CPU seconds to find out, one after the other, that all structures of a stack can be erased together."""
    from niwaki.erasing.flow import Flow
    from niwaki.erasing.operand_tree import OperandTree
    from niwaki.erasing.validity import Validity
    from niwaki.trace import tracer

    graph = tracer.trace(Stack(number), tracer.example_calls(torch.randn(1, 2)), modes=(False,))
    start = time.process_time()
    flow = Flow.of(graph, graph.runs[0])
    nesting = OperandTree.of(flow)
    validity = Validity(flow, [*flow.sources], nesting)
    branches = [operands[1] for operands in flow.joins.values()]
    assert len(branches) == number and all(validity.erase(branch) is None for branch in branches)
    return time.process_time() - start
