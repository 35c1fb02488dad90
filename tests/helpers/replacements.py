"""Networks with streams, and random plans that erase, narrow, implant, and give each branch channels of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from implanted import Blocks, Residual, images, randomised
from torch import Tensor, nn

import niwaki
from niwaki.core.edits import PlacedEdit
from niwaki.core.plan import Plan
from niwaki.errors import PlanError
from niwaki.implants import ImplantLayers
from niwaki.networks.small import ResNet
from niwaki.selection.structures import valid_erasures
from niwaki.surgery.zero import zeroed
from niwaki.unions import Writers, union_plan


class PreResNet(nn.Module):
    """Norms and activations before convolutions, and a stride between two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.blocks = nn.ModuleList(PreBlock(8, 10, 3 + 2 * (number % 2)) for number in range(2))
        self.wider, self.later = nn.Conv2d(8, 12, 3, 2, 1), nn.ModuleList(PreBlock(12, 10, 3) for _ in range(2))
        self.norm, self.head = nn.BatchNorm2d(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        x = self.wider(x)
        for block in self.later:
            x = block(x)
        found: Tensor = self.head(self.norm(x).relu().mean((2, 3)))
        return found


class PreBlock(nn.Module):
    """What is added to the stream of `PreResNet`."""

    def __init__(self, channels: int, hidden: int, kernel: int) -> None:
        super().__init__()
        self.before, self.first = nn.BatchNorm2d(channels), nn.Conv2d(channels, hidden, kernel, padding=kernel // 2)
        self.between, self.second = nn.BatchNorm2d(hidden), nn.Conv2d(hidden, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.second(self.between(self.first(self.before(x).relu())).relu())


class Vision(nn.Module):
    """A transformer on patches: attention and hidden layers behind RMSNorm."""

    def __init__(self, width: int = 16, layers: int = 2) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 3, 3)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))
        self.norm, self.head = nn.RMSNorm(width, eps=1e-6), nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x = layer(x)
        found: Tensor = self.head(self.norm(x).mean(1))
        return found


class Layer(nn.Module):
    """Of `Vision`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.before, self.between = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.query, self.key, self.value, self.mix = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.heads = nn.Linear(width, 20), nn.Linear(20, width), 4

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        q, k, v = (
            layer(y).unflatten(2, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, scale=0.5)
        x = x + self.mix(y.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.between(x))))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "blocks": Blocks,
    "residual": Residual,
    "resnet": lambda: ResNet(4, 3, (9, 8), (8, 12), 2),
    "preresnet": PreResNet,
    "vit": Vision,
}


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """A network in float64, its search space with structures, layers that can have implants, and writers."""

    network: nn.Module
    x: Tensor
    layers: ImplantLayers
    writers: Writers

    @property
    def space(self) -> niwaki.SearchSpace:
        """Of all of it."""
        return self.writers.space

    @classmethod
    def of(cls, name: str, readers: bool = False) -> Case:
        """The network of this name; its linear layers have implants of rank 2. With ``readers``, branches choose what
        they read of their streams, too."""
        network, x = randomised(NETWORKS[name]()), images()
        space = niwaki.search_space(network, x, erase=True)
        return cls(network, x, ImplantLayers.of(space, 2), Writers.of(space, readers))

    def random_plan(self, seed: int, *, erase: bool, union: bool, implants: bool) -> Plan:
        """One that erases up to two structures, removes a fifth of the units, lets writers write, and readers read,
        three fifths of their channels, and implants a third of the units that can be."""
        space, rng = self.space, np.random.default_rng(seed)
        first = [group.first for group in space.groups]
        keep = rng.random(space.num_units) < 0.8
        keep[first] = True
        if erase:
            structures = [group.first for group in space.groups if group.structure is not None]
            gone = np.zeros(space.num_units, dtype=bool)
            gone[rng.choice(structures, min(2, len(structures)), replace=False)] = True
            keep &= ~valid_erasures(space, gone)
        writes = [
            rng.random(len(one.units)) < 0.6 if union else np.ones(len(one.units), bool) for one in self.writers.ends
        ]
        for one, mask in zip(self.writers.ends, writes, strict=True):
            mask[one.units == space.groups[one.group].first] = True
        plan = union_plan(self.writers, keep, writes, {"seed": seed})
        if not implants:
            return plan
        slim = self.layers.can & space.keep_of(plan) & (rng.random(space.num_units) < 0.33)
        placed = {edit.module for edit in plan.edits if isinstance(edit, PlacedEdit)}  # by the layer and not by a norm
        for layer in self.layers.layers:
            if layer.module in placed:
                slim[[unit for unit in layer.units.reshape(-1) if unit < space.num_units]] = False
        slim[first] = False
        return plan.with_edits(self.layers.edits(plan, slim))

    def deviation(self, plan: Plan) -> tuple[float, float]:
        """How far the cut network is from the reference: its outputs, in eval and train mode, and the gradient by the
        input, relative to the largest."""
        found = [0.0, 0.0]
        for training in (False, True):
            self.network.train(training)
            given = self.x.clone().requires_grad_()
            ours, theirs = niwaki.cut(self.network, plan)(given), zeroed(self.network, plan)(given)
            slopes = [torch.autograd.grad(one.square().sum(), given)[0] for one in (ours, theirs)]
            for place, (a, b) in enumerate(((ours, theirs), slopes)):
                if a.shape != b.shape:
                    raise PlanError(f"The cut network gives {list(a.shape)}, and the reference {list(b.shape)}.")
                found[place] = max(found[place], float((a - b).detach().abs().max() / b.detach().abs().max()))
        self.network.eval()
        return found[0], found[1]
