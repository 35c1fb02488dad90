"""Peak memory and passes of `niwaki.compensate`, beside a training step at the same batch, over depth.

    python -m benchmarks.repair_memory --layers 20 56 110 --batches 8 24 --size 64

ResNets for images of 32 x 32 (16-32-64 channels) with fresh weights, half of whose parameters leave by magnitude; the
images are noise. Each figure is that of a process of its own: how much its resident memory grew at the peak, in MiB.
Figures: POST_TRAINING.md.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import niwaki
from benchmarks.accuracy.networks import CifarResNet


def main() -> None:
    options = _options()
    if options.child:
        print(json.dumps(measured(*(int(number) for number in options.child))))
        return
    print("| layers | training step, MiB | batches | compensate, MiB | times | passes | s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for layers in options.layers:
        step = _in_a_process(layers, 0, options.size)
        for batches in options.batches:
            repair = _in_a_process(layers, batches, options.size)
            times, passes = repair["mib"] / step["mib"], repair["passes"] / batches
            told = f"{repair['mib']:.0f} | {times:.1f} | {passes:.0f} | {repair['seconds']:.0f}"
            print(f"| {layers} | {step['mib']:.0f} | {batches} | {told} |", flush=True)


def _in_a_process(*numbers: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.repair_memory", "--child", *map(str, numbers)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return found


def measured(layers: int, batches: int, size: int) -> dict[str, float]:
    """Memory growth, passes over the data and CPU seconds of a repair with ``batches`` calibration batches, or, with 0,
    of one training step."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    net = CifarResNet(10, 3, blocks=(layers - 2) // 6)
    space = niwaki.search_space(net, torch.randn(1, 3, 32, 32))
    plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(params=0.5))
    data = list(torch.randn(max(1, batches), size, 3, 32, 32))
    passes, begin, before = 0, time.process_time(), _peak()

    def forward(model: nn.Module, batch: Tensor) -> None:
        nonlocal passes
        passes += 1
        model(batch)

    if batches:
        niwaki.compensate(space, plan, data, forward=forward)
    else:
        optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
        F.cross_entropy(net.train()(data[0]), torch.zeros(size, dtype=torch.int64)).backward()
        optimizer.step()
    return {"mib": _peak() - before, "passes": passes, "seconds": time.process_time() - begin}


def _peak() -> float:
    """The most memory that this process has had, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[20, 56, 110])
    parser.add_argument("--batches", type=int, nargs="+", default=[8, 24])
    parser.add_argument("--size", type=int, default=64, help="of a batch")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
