"""Load the network that `niwaki train` or `niwaki prune` left, with the normalisation that its images need."""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn

from niwaki.core.devices import usable_device
from niwaki.errors import DataError, FileFormatError, RunError
from niwaki.io import load
from niwaki.networks import ImageTask, build_model
from niwaki.networks.scaling import scaled
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
        """The scores [B, classes] of ``images`` [B, C, H, W], pixels in 0 to 255 of any dtype. If the images of the
        training were scaled and cropped, these are in the same way.

        Raises:
            DataError: they have other channels or another size, or fractions of 1 for pixels.
        """
        _check_images(images, tuple(self.report.data["shape"]), scales=self.report.recipe.get("image_size") is not None)
        pixels = scaled(images.to(self.mean.device), tuple(self.report.data["shape"][1:])).to(torch.float32)
        normal = (pixels - self.mean.float()[:, None, None]) / self.std.float()[:, None, None]
        dtype = next((p.dtype for p in self.network.parameters() if p.is_floating_point()), self.mean.dtype)
        scores: Tensor = self.network(normal.to(dtype))  # also after half() or bfloat16()
        return scores


def _check_images(images: Tensor, shape: tuple[int, ...], *, scales: bool) -> None:
    """Raise `DataError` unless a network of images of ``shape`` [C, H, W] can take these."""
    if not isinstance(images, Tensor) or images.ndim != 4:
        what = f"of shape {list(images.shape)}" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise DataError(f"The images are {what}, but must be a tensor [batch, {', '.join(map(str, shape))}].")
    if images.shape[1] not in (1, shape[0]):
        raise DataError(f"The images have {images.shape[1]} channels, and the network takes {shape[0]}.")
    if tuple(images.shape[2:]) != shape[1:] and not scales:
        here, there = ("x".join(map(str, size)) for size in (images.shape[2:], shape[1:]))
        raise DataError(
            f"The images are {here} pixels, and the network was trained on {there}. Scale them, or call the attribute "
            "`network` with normalised images of another size."
        )
    if images.is_floating_point() and images.numel() and not (images.is_meta or torch.compiler.is_compiling()):
        if bool((images.amax() <= 1) & images.any()):
            raise DataError(
                f"The largest pixel is {float(images.amax()):.3g}, and pixels from 0 to 255 are expected. Multiply "
                "images in 0 to 1 by 255, and do not normalise them: the network does."
            )


def load_run(directory: str | os.PathLike[str], *, device: str | torch.device = "cpu") -> RunNetwork:
    """The small network of the run that `niwaki train` or `niwaki prune` wrote to ``directory``, in eval mode.

    It takes images as they are, pixels in 0 to 255, which it scales and crops if the training did (``--image-size``).
    A network from ``path/to/file.py:factory`` is built by that file, which must be where it was, seen from the current
    directory.

    Args:
        directory: what was given to ``--out``.
        device: the device of the network.

    Raises:
        FileFormatError: there is no finished run, a file is damaged, or the network's code has changed since.
        RunError: the device cannot be used here.

    Example::

        network = niwaki.load_run("out/demo")
        labels = network(images).argmax(1)  # images: uint8 [B, C, H, W]
        niwaki.latency(network.network, torch.zeros(1, *network.report.data["shape"]))
    """
    report, place = read_report(directory), usable_device(device)
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
    return RunNetwork(load(dense, directory), report).to(place).eval()
