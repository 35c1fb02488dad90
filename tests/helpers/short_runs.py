"""Short trainings on digits, who listens to them, and image files: what the tests of `niwaki train` share."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from niwaki.report import RunReport
from niwaki.train import job
from niwaki.train.loop import EpochResult, Silent, TrainingProgress
from niwaki.train.recipe import Recipe

CPU = torch.device("cpu")
train = functools.partial(job.train, measure_seconds=0.05)
SHORT = Recipe(epochs=2, batch_size=128, periods=3, width=0.5, prune_until=0.5)


class Recorder(Silent):
    """Remembers what it is told, and stops the run when asked to."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.steps: list[TrainingProgress] = []
        self.epochs: list[EpochResult] = []
        self.stop_at = stop_at

    def on_step(self, progress: TrainingProgress) -> None:
        self.steps.append(progress)

    def on_epoch(self, result: EpochResult) -> None:
        self.epochs.append(result)

    def should_stop(self) -> bool:
        return self.stop_at is not None and len(self.steps) >= self.stop_at


@dataclass(frozen=True, slots=True)
class ShortRun:
    """A run by the recipe `SHORT`: where its files are, its report, and what it told meanwhile."""

    out: Path
    report: RunReport
    told: Recorder


def archive(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return str(path)


def some(count: int = 12, shape: tuple[int, ...] = (6, 6), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, *shape), dtype=np.uint8), np.arange(count) % 3


def picture(path: Path, size: tuple[int, int], colour: Any) -> None:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)
