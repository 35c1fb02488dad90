"""What a task is built from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.accuracy.datasets import Dataset

SMOKE = 1000  # training images of a smoke size


@dataclass(frozen=True, slots=True)
class Where:
    """The folder of the data, the device, and whether tasks have their ``smoke`` size, which shows that everything runs
    and nothing else. ``all_images``: those that are held out are trained on as well, so that nothing can be chosen by
    them."""

    data: Path | None
    device: torch.device
    smoke: bool = False
    all_images: bool = False

    def path(self, name: str) -> Path:
        """A file or folder of the data."""
        if self.data is None:
            raise SystemExit(f"This task needs {name} in the folder of the data: give it with --data.")
        if not (self.data / name).exists():
            raise SystemExit(
                f"There is no {name} in {self.data}. `python -m benchmarks.accuracy --help` tells what belongs there."
            )
        return self.data / name

    def images(self, data: Dataset) -> Dataset:
        """All of the images, or few of them."""
        data = data.with_held_out() if self.all_images else data
        return data.first(SMOKE, SMOKE // 2) if self.smoke else data
