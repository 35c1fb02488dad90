"""How long the analysis takes, against Torch-Pruning's graph building and the model's own forward pass.

python benchmarks/analysis.py [--match resnet] [--repeat 3]

For every torchvision classification model at its default input size (batch of one, random weights): the CPU seconds of
trace + solve, of the rehearsal, of `DependencyGraph.build_dependency`, and of an eager forward in eval mode. All in
one process on one thread, in turn, `--repeat` times; the least of each counts. CPU time, so that a busy machine matters
little. Needs `torch-pruning`, which nothing else here does; without it that column is empty.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

import niwaki
from niwaki.networks.torchvision_cpu import load

load()

import torchvision  # noqa: E402

try:
    import torch_pruning  # type: ignore[import-not-found, unused-ignore]
except ImportError:
    torch_pruning = None

_COLUMNS = ("trace + solve", "with rehearsal", "Torch-Pruning", "forward")


def models(match: str) -> Iterator[tuple[str, torch.nn.Module, torch.Tensor]]:
    """Name, network and input."""
    for name in torchvision.models.list_models(module=torchvision.models):
        if re.search(match, name):
            size = torchvision.models.get_model_weights(name).DEFAULT.transforms().crop_size[0]
            size = min(size, 224) if name.startswith("vit_") else size  # other weights than the network without any
            more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
            torch.manual_seed(0)
            yield name, torchvision.models.get_model(name, **more).eval(), torch.randn(1, 3, size, size)


def seconds(work: Callable[[], Any]) -> float:
    """CPU time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def row(model: torch.nn.Module, image: torch.Tensor, repeat: int) -> dict[str, float]:
    """The least of each column."""

    def forward() -> None:
        with torch.no_grad():
            model(image)

    def peer() -> None:
        torch_pruning.DependencyGraph().build_dependency(model, example_inputs=image)

    works = {
        "forward": forward,
        "trace + solve": lambda: niwaki.search_space(model, image, rehearse=False),
        "with rehearsal": lambda: niwaki.search_space(model, image),
    }
    if torch_pruning is not None:
        works["Torch-Pruning"] = peer
    found = {"Torch-Pruning": float("nan")} | dict.fromkeys(works, float("inf"))
    for _ in range(repeat):
        for name, work in works.items():
            try:
                found[name] = min(found[name], seconds(work))
            except Exception as error:  # noqa: BLE001 - a peer that fails is a row of the table
                print(f"  {name} fails: {type(error).__name__}: {str(error)[:80]}")
                found[name] = float("nan")
    return found


def main() -> None:
    """Print a row per model, then the quantiles that the project promises something about."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--match", default="", help="only models whose name contains this regular expression")
    parser.add_argument("--repeat", type=int, default=3, help="how often; the least counts")
    options = parser.parse_args()
    torch.set_num_threads(1)
    small = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 4))
    row(small, torch.randn(1, 4), 1)  # what happens only once
    print(f"{'model':<22}" + "".join(f"{name:>16}" for name in _COLUMNS) + f"{'ratio':>8}{'x forward':>11}", flush=True)
    ratios, ours, peers, total, factor = [], [], [], [], []
    for name, model, image in models(options.match):
        found = row(model, image, options.repeat)
        ratios.append(found["trace + solve"] / found["Torch-Pruning"])
        ours.append(found["trace + solve"])
        peers.append(found["Torch-Pruning"])
        total.append(found["with rehearsal"])
        factor.append(found["with rehearsal"] / found["forward"])
        columns = "".join(f"{found[column]:>16.3f}" for column in _COLUMNS)
        print(f"{name:<22}{columns}{ratios[-1]:>8.2f}{factor[-1]:>11.1f}", flush=True)
    for what, numbers in (
        ("trace + solve, s", ours),
        ("Torch-Pruning, s", peers),
        ("ratio of the two", ratios),
        ("with rehearsal, s", total),
        ("with rehearsal / forward", factor),
    ):
        median, ninetieth, most = np.nanquantile(numbers, [0.5, 0.9, 1.0])
        print(f"{what:<26} median {median:.3f}  90th percentile {ninetieth:.3f}  most {most:.3f}")


if __name__ == "__main__":
    main()
