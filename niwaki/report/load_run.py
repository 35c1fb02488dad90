"""Load the network that `niwaki train` or `niwaki prune` left, with the normalisation that its images need."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from niwaki.errors import FileFormatError, RunError
from niwaki.io import load
from niwaki.networks import ImageTask, build_model
from niwaki.report.run import RunReport, read_report


class RunNetwork(nn.Module):
    """The small network of a run, behind the normalisation of its training images.

    ``network``: the small network itself. ``report``: the report of the run. ``mean``, ``std`` [C]: of pixels in 0 to
    255.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, report: RunReport) -> None:
        super().__init__()
        self.network, self.report = network, report
        self.register_buffer("mean", torch.tensor(report.data["mean"]))
        self.register_buffer("std", torch.tensor(report.data["std"]))

    def forward(self, images: Tensor) -> Tensor:
        """The scores [B, classes] of ``images`` [B, C, H, W], pixels in 0 to 255 of any dtype."""
        pixels = images.to(self.mean.device, torch.float32)
        scores: Tensor = self.network((pixels - self.mean[:, None, None]) / self.std[:, None, None])
        return scores


def load_run(directory: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> RunNetwork:
    """The small network of the run that `niwaki train` or `niwaki prune` wrote to ``directory``, in eval mode.

    It takes images as they are, pixels in 0 to 255. A network from ``path/to/file.py:factory`` is built by that file,
    which must be where it was, seen from the current directory.

    Args:
        directory: what was given to ``--out``.
        device: the device of the network.

    Raises:
        FileFormatError: there is no finished run, a file is damaged, or the network's code has changed since.

    Example::

        network = niwaki.load_run("out/demo")
        labels = network(images).argmax(1)  # images: uint8 [B, C, H, W]
        niwaki.latency(network.network, torch.zeros(1, *network.report.data["shape"]))
    """
    report = read_report(directory)
    name, (channels, *size) = report.recipe["model"], report.data["shape"]
    task = ImageTask(report.data["classes"], channels, (size[0], size[1]))
    try:
        with torch.random.fork_rng():
            dense = build_model(name, task, report.recipe.get("width", 1.0))
    except RunError as cause:
        raise FileFormatError(
            f"The run in {os.fspath(directory)!r} is of the network {name!r}, which cannot be built here: {cause} A "
            "path in it is seen from the current directory; niwaki.load takes the dense network as an argument."
        ) from cause
    return RunNetwork(load(dense, directory), report).to(device).eval()
