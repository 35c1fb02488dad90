"""LHSPG on a 260,032-parameter Llama: fine-tuned with LoRA on TinyStories, pruned on the way, merged and cut.

    python benchmarks/lora_stories.py --weights stories260K --text tinystories_tok512.npz

``--weights``: a folder with ``config.json`` and ``model.safetensors`` of a Llama; ``--text``: an archive with the
arrays ``train`` and ``val`` of its tokens. Needs transformers and peft (``pip install niwaki[zoo,lora]``).

For each share of the parameters: the loss in nats per token on the same windows of ``val``, of the dense network as it
came (``before``); of LHSPG's merged and cut network (``lhspg``); and, trained by the same number of steps with the same
adapters, batches and learning rate, of the dense network (``dense``), and of one that is cut by magnitude before the
first step (``one-shot``).
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import niwaki
from niwaki.methods.lora import find_pairs, merged_space
from niwaki.train.torchvision_cpu import load

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def llama(folder: Path, rank: int) -> Any:
    """The network with peft's adapters beside its linear layers."""
    load()  # transformers imports torchvision
    import peft
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    model = LlamaForCausalLM.from_pretrained(folder)
    return peft.get_peft_model(model, peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))


def windows(tokens: np.ndarray[Any, Any], length: int, batch: int, seed: int) -> Iterator[Tensor]:
    """Random windows of the text, [batch, length], without end."""
    draw = np.random.default_rng(seed)
    while True:
        starts = draw.integers(0, len(tokens) - length, batch)
        yield torch.from_numpy(np.stack([tokens[s : s + length] for s in starts]).astype(np.int64))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    """Nats per token."""
    loss: Tensor = model(input_ids=batch, labels=batch, use_cache=False).loss
    return loss


@torch.no_grad()
def validation(model: nn.Module, tokens: np.ndarray[Any, Any], length: int, count: int) -> float:
    """The mean loss over ``count`` windows spread over ``tokens``."""
    model.eval()
    starts = np.linspace(0, len(tokens) - length, count).astype(int)
    batches = [torch.from_numpy(tokens[s : s + length].astype(np.int64))[None] for s in starts]
    return float(np.mean([loss_of(model, batch).item() for batch in batches]))


class Bench:
    """Everything that the arms share."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        with np.load(options.text) as archive:
            self.train, self.val = archive["train"], archive["val"]

    def fresh(self) -> Any:
        return llama(self.options.weights, self.options.rank)

    def example(self) -> dict[str, Any]:
        return {"input_ids": torch.zeros(1, 16, dtype=torch.int64), "use_cache": False}

    def validated(self, model: nn.Module) -> float:
        return validation(model, self.val, self.options.length, self.options.validation)

    def fine_tune(self, model: nn.Module, share: float | None = None) -> niwaki.LHSPG | None:
        """The steps of all arms; with a ``share`` of the parameters LHSPG is attached."""
        o = self.options
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=o.lr, weight_decay=0.0)
        scored = [batch for batch, _ in zip(windows(self.train, o.length, o.batch, 1), range(o.scored), strict=False)]

        def loss() -> Tensor:
            return torch.stack([loss_of(model, batch) for batch in scored]).mean()

        method = None
        if share is not None:
            space = niwaki.search_space(model, self.example())
            schedule = niwaki.Schedule(start=o.steps // 20, until=round(o.until * o.steps), periods=o.periods)
            budget = niwaki.Budget(params=share)
            method = niwaki.LHSPG(space, optimizer, budget, schedule, loss=loss, protect=o.protect)
        model.train()
        for batch, _ in zip(windows(self.train, o.length, o.batch, 2), range(o.steps), strict=False):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        return method

    def lhspg(self, share: float) -> tuple[float, int]:
        model = self.fresh()
        method = self.fine_tune(model, share)
        assert method is not None
        small = niwaki.cut(model, method.plan()).merge_and_unload()
        return self.validated(small), sum(p.numel() for p in small.parameters())

    def one_shot(self, share: float) -> tuple[float, int]:
        """By magnitude, cut as a network with adapters, so that the rest can be trained by them."""
        model = self.fresh()
        space = niwaki.search_space(model, self.example())
        view, number = merged_space(space, find_pairs(space))
        plan = niwaki.choose(view, niwaki.score(view, "magnitude"), niwaki.Budget(params=share))
        keep = np.ones(space.num_units, dtype=bool)
        keep[number] = view.keep_of(plan)
        small = niwaki.cut(model, space.plan(keep))
        self.fine_tune(small)
        small = small.merge_and_unload()
        return self.validated(small), sum(p.numel() for p in small.parameters())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.8])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--periods", type=int, default=5)
    parser.add_argument("--until", type=float, default=0.3, help="the share of the steps after which all is zero")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--protect", type=float, default=0.1)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--scored", type=int, default=4, help="batches that the sensitivity and the scores look at")
    parser.add_argument("--validation", type=int, default=40, help="windows of the validation text")
    parser.add_argument("--out", type=Path, help="also write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = Bench(options)

    dense = bench.fresh()
    rows: list[dict[str, Any]] = []

    def tell(arm: str, share: float, loss: float, params: int) -> None:
        rows.append({"arm": arm, "share": share, "loss": loss, "params": params})
        print(f"{arm:>9} {share:5.0%}  {params:>8,} parameters  {loss:.4f} nats per token", flush=True)

    plain = copy.deepcopy(dense).merge_and_unload()
    params = sum(p.numel() for p in plain.parameters())
    tell("before", 1.0, bench.validated(plain), params)
    bench.fine_tune(dense)
    tell("dense", 1.0, bench.validated(dense.merge_and_unload()), params)
    for share in options.shares:
        tell("lhspg", share, *bench.lhspg(share))
        tell("one-shot", share, *bench.one_shot(share))
    if options.out:
        about = {k: str(v.name) if isinstance(v, Path) else v for k, v in vars(options).items()}
        options.out.write_text(json.dumps({"options": about, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
