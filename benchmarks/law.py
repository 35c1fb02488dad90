"""The law on the zoo: per model its coverage, the least share of MACs, the worst deviation over plans, analysis time.

python benchmarks/law.py --plans 20 [--only resnet18 llama]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))

from exactness import deviations
from zoo import ZOO

import niwaki
from niwaki.testing.models import random_plan, randomised


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=2, help="random plans per model")
    parser.add_argument("--only", nargs="*", default=list(ZOO))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print("| model | units | groups | coverage | least MACs | float32 eval | float64 eval | float64 train | analysis |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name in options.only:
        torch.manual_seed(0)
        entry = ZOO[name]
        model, inputs = randomised(entry.build().eval()), entry.inputs()
        start = time.perf_counter()
        space = niwaki.search_space(model, inputs)
        seconds = time.perf_counter() - start
        worst = {"float32": 0.0, "eval": 0.0, "train": 0.0}
        rng = np.random.default_rng(0)
        for index in range(options.plans):
            train = entry.train and index < max(1, options.plans // 5)
            for what, value in deviations(model, random_plan(space, rng), inputs, train=train).items():
                worst[what] = max(worst[what], value)
        least = space.least_cost().macs / space.cost().macs
        trained = f"{worst['train']:.0e}" if entry.train else "-"
        print(
            f"| {name} | {space.num_units} | {len(space.groups)} | {space.coverage:.4f} | {least:.4f} | "
            f"{worst['float32']:.0e} | {worst['eval']:.0e} | {trained} | {seconds:.1f} s |",
            flush=True,
        )


if __name__ == "__main__":
    main()
