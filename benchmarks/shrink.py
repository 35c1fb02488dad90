"""What shrinking during training saves: the time of a whole run, dense, with HESSO, and with HESSO and shrinking.

python benchmarks/shrink.py --network resnet --data DIRECTORY [--steps 200] [--seeds 1]

All arms of a seed begin with the same weights, see the same batches, and take turns of ``--turn`` steps in one process,
so that whatever else the machine does hits them alike. The time is CPU time of one thread. HESSO brings the network to
``--macs`` of its multiply-accumulates, in steps of ``--round-to``, within the share ``--moment`` of the
run. ``--data`` is a directory with cifar10/cifar10_train_1.npz ... 5.npz, or text/tinyshakespeare.txt for the decoder.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.console import Console
from rich.table import Table

import niwaki
from benchmarks.accuracy.augmentation import Flip, Shift
from benchmarks.accuracy.datasets import cifar10
from benchmarks.accuracy.images import ImageTask
from benchmarks.accuracy.language import LanguageTask, characters
from benchmarks.accuracy.networks import CifarResNet, llama
from benchmarks.accuracy.recipe import Adam, Recipe
from benchmarks.accuracy.task import Task
from benchmarks.accuracy.vision import airbench, fashion
from benchmarks.accuracy.where import Where
from niwaki.networks.small import ResNet

ARMS = ("dense", "HESSO", "HESSO + shrinking")


def resnet(data: Path, steps: int) -> Task:
    """Widths 64-128-256, two blocks each, at half the resolution of CIFAR-10."""
    return _images(data, steps, partial(ResNet, 10, 3, (32, 32), (64, 128, 256)))


def resnet20(data: Path, steps: int) -> Task:
    """Widths 16-32-64 at the full resolution."""
    return _images(data, steps, partial(CifarResNet, 10, 3, blocks=3))


def decoder(data: Path, steps: int) -> Task:
    """A Llama of four layers, 256 wide, on the characters of Shakespeare."""
    from niwaki.networks.torchvision_cpu import load

    load()
    texts = characters(data / "text/tinyshakespeare.txt")
    settings = {
        "vocab_size": texts.vocabulary,
        "hidden_size": 256,
        "intermediate_size": 704,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 32,
        "max_position_embeddings": 128,
    }
    recipe = Recipe(steps, 8, 1e-3, 0.01, Adam())
    return LanguageTask("decoder", recipe, texts, partial(llama, **settings), torch.device("cpu"), 128, 32)


def _images(data: Path, steps: int, build: Callable[[], torch.nn.Module]) -> Task:
    images = cifar10(data / "cifar10").first(36_000, 2000)
    recipe = Recipe(steps, 64, 0.05)
    return ImageTask("cifar10", recipe, images, build, torch.device("cpu"), (Flip(), Shift(2)))


def _recipe(task: Callable[[Where, int], Task], data: Path, steps: int) -> Task:
    """A task of `benchmarks.accuracy`, over so many steps."""
    made = task(Where(data, torch.device("cpu")), 0)
    made.recipe = replace(made.recipe, steps=steps)
    return made


NETWORKS: dict[str, Callable[[Path, int], Task]] = {
    "resnet": resnet,
    "decoder": decoder,
    "resnet20": resnet20,
    "recipe-a": partial(_recipe, fashion),
    "recipe-b": partial(_recipe, airbench),
}


class Run:
    """One arm of one seed. ``seconds``: CPU time of its steps so far, with whatever a method does in them."""

    def __init__(self, task: Task, arm: str, seed: int, options: argparse.Namespace) -> None:
        torch.manual_seed(seed)
        self.task, self.seconds, self.sizes = task, 0.0, [1.0]
        self.model = task.prepared(task.network()).train()
        self.optimizer = task.recipe.attach(self.model)
        self.peaks = [group["lr"] for group in self.optimizer.param_groups]
        self.batches: Iterator[Any] = task.batches(seed)
        self.method: niwaki.HESSO | None = None
        start = time.process_time()
        if arm != "dense":
            steps = task.recipe.steps
            self.method = niwaki.HESSO(
                niwaki.search_space(self.model, task.example(), task.ignored),
                self.optimizer,
                niwaki.Budget(macs=options.macs, round_to=options.round_to),
                niwaki.Schedule(start=max(1, steps // 50), until=round(steps * options.moment), periods=5),
                window=5,
                shrink=arm == "HESSO + shrinking",
            )
        self.analysis = time.process_time() - start

    def turn(self, first: int, last: int) -> None:
        """Steps ``first`` up to, not including, ``last``."""
        for step in range(first, last):
            batch = next(self.batches)
            start = time.process_time()
            for group, peak in zip(self.optimizer.param_groups, self.peaks, strict=True):
                group["lr"] = peak * self.task.recipe.factor(step)
            self.optimizer.zero_grad()
            self.task.loss(self.model, batch).backward()
            self.optimizer.step()
            self.seconds += time.process_time() - start
        if self.method is not None and self.method.shrinking is not None:
            here = self.method.space.cost_of(self.method.units.live.here).macs / self.method.space.cost().macs
            if here != self.sizes[-1]:
                self.sizes.append(here)

    def result(self) -> float:
        """The measure of what `niwaki.cut` makes of the model, or of the dense one."""
        model = self.model if self.method is None else niwaki.cut(self.model, self.method.plan())
        return self.task.evaluate(model)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS), default="resnet")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--turn", type=int, default=5, help="steps that an arm takes before it is the next one's turn")
    parser.add_argument("--macs", type=float, default=0.35)
    parser.add_argument("--moment", type=float, default=0.3, help="the share of the run in which units leave")
    parser.add_argument("--round-to", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console()
    when = f"{options.macs:.0%} of the MACs after {options.moment:.0%}"
    table = Table(title=f"{options.network}, {options.steps} steps, {when}")
    for name in ("seed", "arm", "analysis s", "training s", "of dense", "of HESSO", "MACs in the model", "measure"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for seed in range(options.seeds):
        task = NETWORKS[options.network](options.data, options.steps)
        runs = {arm: Run(task, arm, seed, options) for arm in ARMS}
        for first in range(0, options.steps, options.turn):
            for run in runs.values():
                run.turn(first, min(first + options.turn, options.steps))
        for arm, run in runs.items():
            table.add_row(
                str(seed),
                arm,
                f"{run.analysis:.2f}",
                f"{run.seconds:.1f}",
                f"{run.seconds / runs['dense'].seconds:.2f}",
                f"{run.seconds / runs['HESSO'].seconds:.2f}",
                " ".join(f"{share:.2f}" for share in run.sizes),
                f"{run.result():.4f}",
            )
            console.print(f"seed {seed} {arm}: {run.seconds:.1f} s", highlight=False)
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
