"""A mask generator: a network that gives every unit of a search space a gate, and is trained by what the gates do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.space import SearchSpace

TEMPERATURE = 0.4
BASE = 3.0  # added to what networks give, so that they begin with all units


@dataclass(frozen=True, slots=True, eq=False)
class MaskGates:
    """The gates of all units, each [num_units].

    ``logits``: positive for a unit that is kept. ``soft``: between 0 and 1. ``hard``: 0 or 1, with the gradient of
    ``soft`` (straight through).
    """

    logits: Tensor
    soft: Tensor
    hard: Tensor


class MaskGenerator(nn.Module, ABC):
    """Gates of the units of ``space``, from parameters of its own. Its state is its ``state_dict``.

    The units that are structures are not its concern: their gates are 1.

    Args:
        space: whose units.
        seed: of its first parameters. No random generator of torch is touched.
    """

    name: str
    travel: float  # what the learning rates of all steps of its training add up to by default, were none lowered
    looks: bool = False  # whether `observe` has to be called

    def __init__(self, space: SearchSpace, seed: int = 0) -> None:
        super().__init__()
        self.sizes = [group.units for group in space.width_groups]
        self._structures = space.num_units - sum(self.sizes)
        self._fewest = np.asarray(space.least_units()[: len(self.sizes)])
        self.protect(0.0)
        self.group_numbers = torch.from_numpy(np.repeat(np.arange(len(self.sizes)), self.sizes))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.build()
        some = next(space.model.parameters())
        self.to(some.device)

    @abstractmethod
    def build(self) -> None:
        """Make the parameters, with torch's global random generator."""

    @abstractmethod
    def scores(self) -> Tensor:
        """A number for each unit of all groups, [sum(sizes)]: above -`BASE` for a unit that is kept."""

    @abstractmethod
    def observe(self, gradient: Tensor, size: Tensor) -> None:
        """After a step: ``gradient`` [sum(sizes)] of the task's loss by the gates, and the norm of each unit's weights,
        ``size`` [sum(sizes)]. For generators that look at the network that they prune."""

    @final
    def protect(self, share: float) -> None:
        """From now on keep at least this share of each group, rounded down, and never fewer than its sizes ask for."""
        sizes = np.asarray(self.sizes)
        least = np.maximum(self._fewest, np.floor(share * sizes).astype(np.int64))
        self._least = torch.from_numpy(np.repeat(least, sizes))

    @final
    def protected(self) -> Tensor:
        """The units that are kept whatever they cost, for now: those of the largest scores, [num_units] of bool."""
        with torch.no_grad():
            found = self._protected(self.scores())
        return torch.cat([found, found.new_ones(self._structures)])

    @final
    def gates(self, noise: torch.Generator | None = None) -> MaskGates:
        """The gates with logistic noise, drawn from ``noise`` (on the CPU); or as they are, without chance.

        With u uniform in (0, 1), logistic noise is log(u) - log(1 - u), the difference of two Gumbel variables:
        soft = sigmoid((score + base + noise) / temperature), and hard is 1 where soft >= 1/2 (Auto-Train-Once, arXiv
        2403.14729, eq. 3 and 4). Without noise, soft is the probability that hard would be 1 with it, which is
        sigmoid(score + base): a gate that is far from the threshold still feels what it costs. The largest of every
        group are kept, as many as its sizes or `protect` ask for: one at least.
        """
        return self.gates_of(self.scores(), noise)

    @final
    def gates_of(self, scores: Tensor, noise: torch.Generator | None = None) -> MaskGates:
        """The same of ``scores`` that were computed before."""
        logits = scores + BASE
        if noise is None:
            drawn, soft = logits, torch.sigmoid(logits)
        else:
            u = torch.rand(len(logits), generator=noise).clamp(1e-6, 1 - 1e-6)
            drawn = logits + (u.log() - (1 - u).log()).to(logits)
            soft = torch.sigmoid(drawn / TEMPERATURE)
        mask = ((drawn >= 0) | self._protected(drawn.detach())).to(soft)
        hard = mask + (soft - soft.detach())  # in this order, so that it is exactly 0 or 1
        return MaskGates(*(self._padded(values, fill) for values, fill in ((logits, BASE), (soft, 1.0), (hard, 1.0))))

    def _padded(self, values: Tensor, fill: float) -> Tensor:
        return values if not self._structures else torch.cat([values, values.new_full((self._structures,), fill)])

    def _protected(self, logits: Tensor) -> Tensor:
        """The units of the largest ``logits`` in each group, as many as must stay."""
        order = torch.argsort(logits, descending=True, stable=True)
        group, least = self.group_numbers.to(logits.device), self._least.to(logits.device)
        order = order[torch.argsort(group[order], stable=True)]
        first = torch.cumsum(torch.bincount(group), 0) - torch.bincount(group)
        place = torch.arange(len(logits), device=logits.device) - first[group[order]]
        found = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
        found[order] = place < least[order]
        return found


def orthogonal_rows(count: int, width: int) -> Tensor:
    """``count`` orthogonal rows of ``width`` numbers, [count, width]; where there are more rows than numbers, each
    ``width`` of them are."""
    blocks = [nn.init.orthogonal_(torch.empty(width, width)) for _ in range(-(-count // width))]
    return torch.cat(blocks)[:count]
