"""Whether stories260K computes the same masked, as it is and cut once a learnt mask is final.

python -m benchmarks.masks.stories DIRECTORY [--steps 60]

The directory has weights/stories260K and text/tinystories_tok512.npz. *ato*: after ``steps`` of training with
`niwaki.ATO`; *ddp*: after a choice with `niwaki.DDPMasks` on frozen weights, its scales folded, and what leaves set to
zero. Differences are those of logits on held-out text, over the largest logit; *accuracy* is the share of next tokens
that are the likeliest.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import niwaki
from niwaki.networks.torchvision_cpu import load
from niwaki.per_unit.unit_gates import UnitGates
from niwaki.surgery.zero import zeroed

LENGTH, ROWS = 64, 8
BUDGET = niwaki.Budget(macs=0.5)


def loss_of(model: Any, batch: Tensor) -> Tensor:
    """Of the next tokens."""
    logits = model(input_ids=batch[:, :-1]).logits
    return nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())


def trained(model: nn.Module, space: niwaki.SearchSpace, batches: list[Tensor], steps: int) -> niwaki.Plan:
    """With ATO."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    schedule = niwaki.Schedule(start=2, until=steps)
    method = niwaki.ATO(space, optimizer, BUDGET, schedule, loss_fn=loss_of, batches=batches[:2])
    for step in range(steps):
        model.train()
        optimizer.zero_grad()
        loss_of(model, batches[2 + step % (len(batches) - 3)]).backward()
        optimizer.step()
    return method.plan()


def chosen(model: nn.Module, space: niwaki.SearchSpace, batches: list[Tensor], steps: int) -> niwaki.Plan:
    """With DDPMasks."""
    masks = niwaki.DDPMasks(batches[:-1], loss_of, steps=steps)
    plan = niwaki.choose(space, masks, BUDGET)
    masks.fold_()
    model.load_state_dict(zeroed(model, plan).state_dict())
    return plan


@torch.no_grad()
def compared(model: nn.Module, space: niwaki.SearchSpace, plan: niwaki.Plan, batch: Tensor) -> str:
    """In words."""
    small, keep = niwaki.cut(model, plan).eval(), torch.from_numpy(space.keep_of(plan)).float()

    def logits(network: Any) -> Tensor:
        found: Tensor = network.eval()(input_ids=batch[:, :-1]).logits
        return found

    masked, cut, whole = UnitGates(space).value(keep, logits), logits(small), logits(model)
    rates = [f"{float((one.argmax(-1) == batch[:, 1:]).float().mean()):.2%}" for one in (masked, whole, cut)]
    size = float(masked.abs().max())
    counts = []
    for network in (model, small):
        with FlopCounterMode(display=False) as counter:
            network(input_ids=batch[:1, :-1])
        counts.append(counter.get_total_flops() // 2)
    attention = space.cost().macs - counts[0]
    return (
        f"masked and as it is {float((masked - whole).abs().max()) / size:.1e}, masked and cut "
        f"{float((masked - cut).abs().max()) / size:.1e}; accuracy {', '.join(rates)}; MACs {space.cost(plan).macs:,} "
        f"by the plan, {counts[1]:,} by torch without attention ({attention:,} in the dense network)"
    )


def main() -> None:
    """Print one line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    load()  # transformers imports torchvision
    from transformers import LlamaForCausalLM

    with np.load(given.directory / "text" / "tinystories_tok512.npz") as archive:
        tokens = torch.tensor(archive["val"][: 12 * ROWS * (LENGTH + 1)].astype(np.int64))
    batches = list(tokens.view(-1, LENGTH + 1).split(ROWS))
    for name, kind in (("ato", trained), ("ddp", chosen)):
        torch.manual_seed(0)
        model: Any = LlamaForCausalLM.from_pretrained(given.directory / "weights" / "stories260K")
        space = niwaki.search_space(model, {"input_ids": batches[0][:1, :-1]})
        plan = kind(model, space, batches, given.steps)
        print(f"{name}: {compared(model, space, plan, batches[-1])}", flush=True)


if __name__ == "__main__":
    main()
