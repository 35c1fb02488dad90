"""What a unit explains of the outputs of the layers that read it, once these are fitted to the units chosen before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.post_training.covariances import Covariances, covariances
from niwaki.post_training.surgeon import columns_of, measured_readers
from niwaki.repair.calibration import Forward
from niwaki.repair.consumers import Reader

_STEPS = 64  # in which the units of a group are chosen
_RIDGE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class CaP:
    """A criterion for `niwaki.score`, `niwaki.choose_iteratively` and `niwaki.prune`: the order of Pruning with
    Compensation (arXiv:2108.13728), which needs no loss and no labels.

    For a layer W x, with R the covariance of its inputs given the inputs chosen so far, a unit with the inputs B adds

        tr(W R_B (R_BB)^-1 R_B' W')

    to the variance of the output that other weights for the chosen inputs reproduce. In each group the unit that adds
    most is chosen first, given all inputs from other groups, R is updated, and the next is found. A unit is worth what
    it adds at its turn, and never more than one before it: as a fraction of the variance of the layer's output, the
    mean over the layers that read it. So the values in a group are its part of the outputs, and what leaves in one
    group can be compared with what leaves in another: ``compare="space"``, as `niwaki.prune` does.

    Args:
        batches: a few hundred inputs, as `niwaki.compensate` takes them; all are held. The network runs over them each
            time that it is scored.
        forward: how to run the model on any other batch: ``lambda model, batch: model(batch[0])``.
        positions: the largest number of positions of each layer's input that R is computed from.

    It costs a forward pass, positions * S^2 multiplications for each layer of S inputs, and S^3 for the order; it holds
    S^2 numbers for each layer.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> x = torch.randn(64, 4)
        >>> space = niwaki.search_space(net, x)
        >>> plan = niwaki.choose(space, niwaki.score(space, niwaki.CaP([x])), niwaki.Budget(macs=0.5), compare="space")
        >>> small = niwaki.cut(niwaki.compensate(space, plan, [x]).model, plan)
    """

    batches: Iterable[Any]
    forward: Forward | None = None
    positions: int = 32_768

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", list(self.batches))

    def __call__(self, space: SearchSpace) -> FloatArray:
        """The part of the outputs that each unit adds, [num_units].

        Raises:
            MethodError: there are no batches, or no linear layer and no ungrouped convolution reads the units of some
                group.
        """
        readers = measured_readers(space)
        found = covariances(space.model, readers, self.batches, None, self.positions, self.forward)
        values = np.zeros(space.num_units)
        for group in space.groups:
            reading = [
                _Explaining(readers[name], found[name], columns)
                for name, columns in columns_of(space, group, readers).items()
                if name in found
            ]
            if not reading:
                raise MethodError(
                    f"No linear layer or ungrouped convolution of its own reads the units of {group.name!r}, so the "
                    "order of CaP does not say what they are worth. Use niwaki.Surgeon, or keep them: "
                    f"ignored=[{group.name!r}]."
                )
            values[group.first : group.first + group.units] = _worth(reading, group.units)
        return values


class _Explaining:
    """One layer that reads the units of a group, while these are chosen one after the other. ``columns`` [units, K]."""

    def __init__(self, layer: Reader, found: Covariances, columns: Tensor) -> None:
        kernel, inputs = layer.weight[0, 0].numel(), layer.weight.shape[1]
        places = torch.arange(inputs * kernel, device=layer.weight.device).reshape(inputs, kernel)
        self._block = places[columns.to(places.device)].flatten(1)  # [units, B]
        self._weight = layer.weight.detach().double().flatten(1)
        self._left = found.inputs.clone()  # the covariance given what is chosen
        self._ridge = _RIDGE * float(found.inputs.diagonal().mean()) + torch.finfo(torch.float64).tiny
        self._whole = max(float((self._weight @ found.inputs * self._weight).sum()), torch.finfo(torch.float64).tiny)
        others = torch.ones(inputs * kernel, dtype=torch.bool, device=places.device)
        others[self._block.flatten()] = False
        if others.any():
            self._take(others.nonzero().flatten())

    def adds(self, units: Tensor) -> Tensor:
        """The part of the output that each of ``units`` would add, [len(units)]."""
        blocks = self._block[units]
        inside = self._left[blocks[:, :, None], blocks[:, None, :]]  # [units, B, B]
        inside = inside + self._ridge * torch.eye(inside.shape[1]).to(inside)
        across = (self._weight @ self._left)[:, blocks].permute(1, 2, 0)  # [units, B, O]
        added: Tensor = (across * torch.linalg.solve(inside, across)).sum((1, 2)) / self._whole
        return added

    def choose(self, unit: int) -> None:
        """Let the layer read a unit."""
        self._take(self._block[unit])

    def _take(self, block: Tensor) -> None:
        across = self._left[:, block].clone()
        inside = across[block] + self._ridge * torch.eye(len(block)).to(across)
        self._left -= across @ torch.linalg.solve(inside, across.T)


def _worth(reading: list[_Explaining], units: int) -> FloatArray:
    """What each unit adds at its turn, [units]; never more than one that was chosen before."""
    worth = np.zeros(units)
    left, lowest = torch.arange(units), float("inf")
    at_once = max(1, units // _STEPS)
    while len(left):
        adds = torch.stack([one.adds(left).cpu() for one in reading]).mean(0)
        chosen = adds.argsort(descending=True)[:at_once]
        for number, unit in zip(chosen.tolist(), left[chosen].tolist(), strict=True):
            lowest = min(lowest, max(float(adds[number]), 0.0))
            worth[unit] = lowest
            for one in reading:
                one.choose(unit)
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[chosen] = False
        left = left[stays]
    return worth
