"""A convolutional network that learns CIFAR-10 in few epochs, and its optimizer (after airbench, arXiv 2404.00498)."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

PATCH = 2  # pixels that the whitening layer looks at, in each direction
EPS = 5e-4  # added to the variance of a patch
MOMENTUM = 0.85
STEP = 1024 * (1 + 1 / (1 - MOMENTUM))  # what a learning rate and a weight decay are quoted per


class Airbench(nn.Module):
    """A frozen layer that whitens patches of 2x2 pixels, three groups of two convolutions, a linear head.

    The weights of the norms have a gradient but no learning rate, so that they stay at 1 unless a method lets a unit
    fade: then the unit is zero behind its norm, whatever its running mean.
    """

    def __init__(self, whitening: Tensor, classes: int = 10, widths: tuple[int, ...] = (32, 128, 128)) -> None:
        """``whitening`` [2 P, C, 2, 2]: the weight of the first layer, from `whitening`."""
        super().__init__()
        self.whiten = nn.Conv2d(whitening.shape[1], len(whitening), PATCH)
        self.whiten.weight.data.copy_(whitening)
        self.whiten.weight.requires_grad_(False)
        channels = itertools.pairwise((len(whitening), *widths))
        self.groups = nn.Sequential(*(ConvGroup(before, after) for before, after in channels))
        self.head = nn.Linear(widths[-1], classes, bias=False)
        self.initialise()

    def forward(self, x: Tensor) -> Tensor:
        """Class scores [B, classes] of images [B, C, 32, 32]."""
        y = F.max_pool2d(self.groups(F.gelu(self.whiten(x))), 3)
        return cast(Tensor, self.head(y.flatten(1)) / 9)

    def initialise(self) -> None:
        """Draw all weights but the whitening ones; convolutions hand their first input channels on."""
        nn.init.zeros_(cast(Tensor, self.whiten.bias))
        for module in (*self.groups.modules(), self.head):
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
                module.reset_parameters()
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight.data[: module.weight.shape[1]])


class ConvGroup(nn.Module):
    """Two 3x3 convolutions, the first of them with pooling to half the resolution."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after, eps=1e-12, momentum=0.4)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after, eps=1e-12, momentum=0.4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


def whitening(images: Tensor) -> Tensor:
    """The eigenvectors of the patches of normalised ``images`` [N, C, H, W], each over the root of its variance (with
    the largest variance first), and their negatives: [2 * 4 C, C, 2, 2]."""
    patches = images.unfold(2, PATCH, 1).unfold(3, PATCH, 1).transpose(1, 3)  # [N, W', H', C, 2, 2]
    patches = patches.reshape(-1, images.shape[1] * PATCH**2)
    values, vectors = torch.linalg.eigh((patches.T @ patches).double() / len(patches))
    rows = (vectors / (values + EPS).sqrt()).T.flip(0).reshape(-1, images.shape[1], PATCH, PATCH).to(images.dtype)
    return torch.cat([rows, -rows])


@dataclass(frozen=True, slots=True)
class AirbenchSgd:
    """SGD with Nesterov momentum. Biases of norms learn ``norms`` times as fast, weights of norms do not learn, and the
    bias of the whitening layer does for the first ``whitening`` of the run. The weight decay of a group is
    ``weight_decay`` over its rate."""

    whitening: float
    norms: float = 64.0

    def __call__(self, model: nn.Module, lr: float, weight_decay: float) -> Optimizer:
        split: dict[str, list[nn.Parameter]] = {"bias": [], "weight": [], "whiten": [], "other": []}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                kind = name.rpartition(".")[2] if "norm" in name else "whiten" if "whiten" in name else "other"
                split[kind].append(parameter)
        fast = lr * self.norms
        groups = [
            {"params": split["bias"], "lr": fast, "weight_decay": weight_decay / fast},
            {"params": split["weight"], "lr": 0.0, "weight_decay": 0.0},
            {"params": split["whiten"], "lr": lr, "weight_decay": weight_decay / lr, "learns_for": self.whitening},
            {"params": split["other"], "lr": lr, "weight_decay": weight_decay / lr},
        ]
        return SGD(groups, lr, MOMENTUM, nesterov=True)
