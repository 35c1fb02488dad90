"""LHSPG on a 260,032-parameter Llama: fine-tuned with LoRA on TinyStories, pruned on the way, merged and cut.

    python benchmarks/lora_stories.py --weights stories260K --text tinystories_tok512.npz

``--weights``: a folder with ``config.json`` and ``model.safetensors`` of a Llama; ``--text``: an archive with the
arrays ``train`` and ``val`` of its tokens. Needs transformers and peft (``pip install transformers peft``).

For each seed (of adapters and batches) and share of the parameters: the loss in nats per token on the same windows of
``val``, of the dense network as it came (``before``); of LHSPG's merged and cut network (``lhspg``); and, trained by
the same number of steps with the same adapters, batches and learning rate, of the dense network (``dense``), of one
that is cut by magnitude before the first step (``one-shot``), and of one that is cut before the first step to what
LHSPG has chosen (``at-once``), which tells its choice from the way there. What was measured: ``LORA.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import niwaki
from niwaki.methods.lora.pairs import find_pairs, merged_space
from niwaki.networks.torchvision_cpu import load

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ARMS = ("before", "dense", "lhspg", "at-once", "one-shot")


def llama(folder: Path, rank: int, seed: int = 0) -> Any:
    """The network with peft's adapters beside its linear layers, which ``seed`` draws."""
    load()  # transformers imports torchvision
    import peft
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
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
    batch = torch.from_numpy(np.stack([tokens[s : s + length] for s in starts]).astype(np.int64))
    parts = batch.split(32)
    return sum(loss_of(model, part).item() * len(part) for part in parts) / count


class Bench:
    """Everything that the arms of one seed share."""

    def __init__(self, options: argparse.Namespace, seed: int) -> None:
        self.options, self.seed = options, seed
        with np.load(options.text) as archive:
            self.train, self.val = archive["train"], archive["val"]

    def fresh(self) -> Any:
        return llama(self.options.weights, self.options.rank, self.seed)

    def example(self) -> dict[str, Any]:
        return {"input_ids": torch.zeros(1, 16, dtype=torch.int64), "use_cache": False}

    def validated(self, model: nn.Module) -> float:
        return validation(model, self.val, self.options.length, self.options.validation)

    def batches(self, count: int, number: int) -> list[Tensor]:
        """The first of one stream of batches; streams of different numbers and seeds have nothing in common."""
        stream = windows(self.train, self.options.length, self.options.batch, number + 10 * self.seed)
        return [batch for batch, _ in zip(stream, range(count), strict=False)]

    def fine_tune(self, model: nn.Module, share: float | None = None) -> niwaki.LHSPG | None:
        """The steps of all arms; with a ``share`` of the parameters LHSPG is attached."""
        o = self.options
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=o.lr, weight_decay=0.0)
        scored = self.batches(o.scored, 1)

        def loss() -> Tensor:
            return torch.stack([loss_of(model, batch) for batch in scored]).mean()

        method = None
        if share is not None:
            space = niwaki.search_space(model, self.example())
            schedule = niwaki.Schedule(o.steps // 20, round(o.until * o.steps), o.periods, o.ramp)
            budget = niwaki.Budget(params=share)
            method = niwaki.LHSPG(space, optimizer, budget, schedule, loss=loss, protect=o.protect)
        model.train()
        for batch in self.batches(o.steps, 2):
            optimizer.zero_grad()
            loss_of(model, batch).backward()
            optimizer.step()
        return method

    def lhspg(self, share: float) -> tuple[nn.Module, niwaki.Plan]:
        model = self.fresh()
        method = self.fine_tune(model, share)
        assert method is not None
        plan = method.plan()
        return niwaki.cut(model, plan).merge_and_unload(), plan

    def cut_first(self, model: Any, plan: niwaki.Plan) -> nn.Module:
        """Cut as a network with adapters, so that the rest can be trained by them."""
        small = niwaki.cut(model, plan)
        self.fine_tune(small)
        merged: nn.Module = small.merge_and_unload()
        return merged

    def one_shot(self, share: float) -> nn.Module:
        """By magnitude."""
        model = self.fresh()
        space = niwaki.search_space(model, self.example())
        view, number = merged_space(space, find_pairs(space))
        plan = niwaki.choose(view, niwaki.score(view, "magnitude"), niwaki.Budget(params=share))
        keep = np.ones(space.num_units, dtype=bool)
        keep[number] = view.keep_of(plan)
        return self.cut_first(model, space.plan(keep))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.9, 0.8])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=ARMS)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--periods", type=int, default=5)
    parser.add_argument("--ramp", default="linear", help="linear or cubic, as in niwaki.Schedule")
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
    rows: list[dict[str, Any]] = []

    for seed in range(options.seeds):
        bench = Bench(options, seed)

        def tell(arm: str, share: float, model: nn.Module, bench: Bench = bench) -> None:
            loss, params = bench.validated(model), sum(p.numel() for p in model.parameters())
            rows.append({"seed": bench.seed, "arm": arm, "share": share, "loss": loss, "params": params})
            about = f"seed {bench.seed} {arm:>9} {share:5.0%}  {params:>8,} parameters"
            print(f"{about}  {loss:.4f} nats per token", flush=True)

        if "before" in options.arms:
            tell("before", 1.0, bench.fresh().merge_and_unload())
        if "dense" in options.arms:
            dense = bench.fresh()
            bench.fine_tune(dense)
            tell("dense", 1.0, dense.merge_and_unload())
        for share in options.shares:
            if {"lhspg", "at-once"} & set(options.arms):
                small, plan = bench.lhspg(share)
                tell("lhspg", share, small)
                if "at-once" in options.arms:
                    tell("at-once", share, bench.cut_first(bench.fresh(), plan))
            if "one-shot" in options.arms:
                tell("one-shot", share, bench.one_shot(share))
    for arm, share in dict.fromkeys((row["arm"], row["share"]) for row in rows):
        losses = [row["loss"] for row in rows if (row["arm"], row["share"]) == (arm, share)]
        print(f"mean of {len(losses)} {arm:>9} {share:5.0%}  {np.mean(losses):.4f}", flush=True)
    if options.out:
        about = {k: str(v.name) if isinstance(v, Path) else v for k, v in vars(options).items()}
        options.out.write_text(json.dumps({"options": about, "rows": rows}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
