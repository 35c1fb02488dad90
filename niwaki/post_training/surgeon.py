"""What a unit is worth after the layers that read it have been fitted to do without it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.counts import FloatArray
from niwaki.core.names import named_modules, named_parameters
from niwaki.core.space import Group, SearchSpace, check_space
from niwaki.criteria.losses import Loss
from niwaki.criteria.score import score
from niwaki.errors import MethodError
from niwaki.post_training.covariances import Covariances, covariances
from niwaki.repair.consumers import Convolution, Reader

_STEPS = 64  # in which the units of a group leave
_RIDGE = 1e-3


@dataclass(frozen=True, slots=True, eq=False)
class Surgeon:
    """A criterion for `niwaki.score`, `niwaki.choose_iteratively` and `niwaki.prune`: the growth of the loss if a unit
    leaves and the layers that read it are compensated for it.

    For a layer W x, with A the covariance of its inputs (about zero if neither a bias nor a BatchNorm behind takes up a
    shift, as in `niwaki.compensate`) and G the sum over positions of the products of its outputs' gradients, the
    second-order loss of other weights W + D is about 1/2 tr(G D A D') (K-FAC, arXiv:1503.05671). If the inputs B of a
    unit leave, the best D costs

        1/2 tr(W_B' G W_B [(A^-1)_BB]^-1)

    (Optimal Brain Surgeon, for blocks), summed over the layers that read the unit. In each group the cheapest unit
    leaves first, A^-1 and W are updated, and the next is found: a unit is worth what it costs at its turn (the order of
    CaP, arXiv:2108.13728, by the loss instead of the variance). Values are losses, to be compared in the whole space:
    ``compare="space"``.

    Units that no linear layer or ungrouped convolution reads (queries and keys, say) are worth 1/2 <x, grad>^2, the
    criterion ``fisher``, on the same scale. Other readers of a unit beside such layers (transposed convolutions,
    recurrent weights) do not count, so that it looks cheaper than it is.

    Args:
        batches: a few hundred samples, as ``loss_fn`` takes them; all are held. The network runs over them forwards and
            backwards each time that it is scored.
        loss_fn: as for `niwaki.score`.
        positions: the largest number of positions of each layer's input that A is computed from.

    It costs a forward and a backward pass, positions * S^2 multiplications for each layer of S inputs, and S^3 for the
    order; it holds S^2 numbers for each layer.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 3))
        >>> data = [(torch.randn(64, 4), torch.randint(0, 3, (64,)))]
        >>> space = niwaki.search_space(net, data[0][0])
        >>> scores = niwaki.score(space, niwaki.Surgeon(data, torch.nn.CrossEntropyLoss()))
        >>> plan = niwaki.choose(space, scores, niwaki.Budget(macs=0.5), compare="space")
        >>> small = niwaki.cut(niwaki.compensate(space, plan, [data[0][:1]]).model, plan)
    """

    batches: Iterable[Any]
    loss_fn: Loss
    positions: int = 32_768

    def __post_init__(self) -> None:
        object.__setattr__(self, "batches", list(self.batches))

    def __call__(self, space: SearchSpace) -> FloatArray:
        """The growth of the loss for each unit, [num_units].

        Raises:
            MethodError: there are no batches, the loss is not a finite scalar with a gradient, or ``space`` has
                structures.
        """
        check_space(space)
        if any(group.structure is not None for group in space.groups):
            raise MethodError(
                "The surgeon scores units, and this search space has structures, too. Score it by another criterion, "
                "such as 'taylor1', or make it without erase=True and streams='union'."
            )
        readers = measured_readers(space)
        found = covariances(space.model, readers, self.batches, self.loss_fn, self.positions)
        values = score(space, "fisher", self.batches, self.loss_fn).values.copy()
        for group in space.groups:
            reading = [
                _Reading(readers[name], found[name], columns)
                for name, columns in columns_of(space, group, readers).items()
                if name in found
            ]
            if reading:
                values[group.first : group.first + group.units] = _worth(reading, group.units)
        return values


def measured_readers(space: SearchSpace) -> dict[str, Reader]:
    """The linear layers and ungrouped convolutions of real weights, by name."""
    return {
        path: layer
        for path, layer in named_modules(space.model)
        if (isinstance(layer, nn.Linear) or (isinstance(layer, Convolution) and layer.groups == 1))
        and not layer.weight.is_complex()
    }


def columns_of(space: SearchSpace, group: Group, readers: Mapping[str, Reader]) -> dict[str, Tensor]:
    """The inputs of each reader that belong to each unit of ``group``, [units, K]; readers with others are left out."""
    names = {id(parameter): name for name, parameter in named_parameters(space.model)}
    weights = {names.get(id(layer.weight)): path for path, layer in readers.items()}
    found = {}
    for place in space.dims:
        path = weights.get(place.tensor)
        if path is None or place.dim != 1 or not place.role.consumes or place.units.shape[1] != 1:
            continue
        unit = place.units[:, 0].astype(np.int64) - group.first
        inside = (unit >= 0) & (unit < group.units)
        counts = np.bincount(unit[inside], minlength=group.units)
        if inside.any() and (counts == counts[0]).all():
            order = np.argsort(unit[inside], kind="stable")
            found[path] = torch.from_numpy(inside.nonzero()[0][order].reshape(group.units, -1))
    return found


class _Reading:
    """One layer that reads the units of a group, while these leave one after the other. ``columns`` [units, K]."""

    def __init__(self, layer: Reader, found: Covariances, columns: Tensor) -> None:
        inputs = layer.weight.shape[1]
        self._kernel = layer.weight[0, 0].numel()
        places = torch.arange(inputs * self._kernel, device=layer.weight.device).reshape(inputs, self._kernel)
        self._block = places[columns.to(places.device)].flatten(1)  # [units, K * kernel]
        ridge = _RIDGE * float(found.inputs.diagonal().mean()) + torch.finfo(torch.float64).tiny
        self._inverse = torch.linalg.inv(found.inputs + ridge * torch.eye(len(found.inputs)).to(found.inputs))
        self._weight = layer.weight.detach().double().flatten(1).clone()
        self._gradients = found.gradients

    def costs(self, units: Tensor) -> Tensor:
        """The loss of each of ``units`` if it leaves next, [len(units)]."""
        blocks = self._block[units]
        inverse = self._inverse[blocks[:, :, None], blocks[:, None, :]]  # [units, B, B]
        weight = self._weight[:, blocks].permute(1, 0, 2)  # [units, O, B]
        bent = weight.mT @ (self._gradients @ weight)
        cost: Tensor = torch.linalg.solve(inverse, bent).diagonal(dim1=1, dim2=2).sum(1) / 2
        return cost

    def remove(self, unit: int) -> None:
        """Let a unit leave, and fit the others."""
        block = self._block[unit]
        across = self._inverse[:, block].clone()
        core = torch.linalg.inv(across[block])
        self._weight -= self._weight[:, block] @ core @ across.T
        self._inverse -= across @ core @ across.T


def _worth(reading: list[_Reading], units: int) -> FloatArray:
    """What each unit costs at its turn, [units]; never less than those that left before."""
    worth = np.zeros(units)
    left, highest = torch.arange(units), 0.0
    at_once = max(1, units // _STEPS)
    while len(left):
        costs = torch.stack([one.costs(left).cpu() for one in reading]).sum(0)
        leaving = costs.argsort()[:at_once]
        for number, unit in zip(leaving.tolist(), left[leaving].tolist(), strict=True):
            highest = max(highest, float(costs[number]))
            worth[unit] = highest
            for one in reading:
                one.remove(unit)
        stays = torch.ones(len(left), dtype=torch.bool)
        stays[leaving] = False
        left = left[stays]
    return worth
