"""The specification of `Iterates`: units one by one, entries one by one. Slow; the fast path must do the same."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.segments import as_real, unit_parameters
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.methods.direction import decay
from niwaki.methods.iterates import Change, Iterates, Rule, Unit


class PlainIterates(Iterates):
    """Iterates as loops over units and slices. ``units`` [num_units]: those concerned."""

    def __init__(self, space: SearchSpace, optimizer: Optimizer, units: BoolArray) -> None:
        self._space, self._optimizer = space, optimizer
        self._parameters = unit_parameters(space)
        held = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._group = {name: held[id(parameter)] for name, parameter in self._parameters.items()}
        self._concerned = np.flatnonzero(units).tolist()
        self._before: dict[str, Tensor] = {}

    def remember(self) -> None:
        self._before = {name: weight.detach().clone() for name, weight in self._parameters.items()}

    def change(self, rule: Rule) -> Change:
        made = {number: rule.of_unit(self._unit(number)) for number in self._concerned}
        some = next(iter(made.values()), Change(torch.tensor(1.0)))

        def of_all(values: dict[int, Tensor | None], neutral: float) -> Tensor | None:
            found = {number: value for number, value in values.items() if value is not None}
            like = next(iter(self._parameters.values()))
            dtype = torch.promote_types(like.dtype.to_real(), torch.float32)
            whole = torch.full((self._space.num_units,), neutral, dtype=dtype)
            for number, value in found.items():
                whole[number] = value
            return whole if found else None

        keep = of_all({number: change.keep for number, change in made.items()}, 1.0)
        return Change(
            keep=torch.ones(self._space.num_units) if keep is None else keep,
            norm=of_all({number: change.norm for number, change in made.items()}, 0.0),
            pull=of_all({number: change.pull for number, change in made.items()}, 0.0),
            soft=of_all({number: change.soft for number, change in made.items()}, 0.0),
            back=some.back,
        )

    def apply(self, change: Change) -> None:
        for name, weight in self._parameters.items():
            y, lr = weight.detach(), self._rate(name)
            x = self._before.get(name, y)
            factor, pull, back = torch.ones_like(y), torch.zeros_like(y), torch.zeros_like(y)
            for number in self._concerned:
                for dim, index in (entry[1:] for entry in self._entries(number) if entry[0] == name):
                    soft = 0 if change.soft is None else float(change.soft[number])
                    _multiply(factor, dim, index, float(change.keep[number]) / (1 + lr * soft))
                    if change.pull is not None:
                        pull.index_add_(dim, index, torch.ones_like(y).index_select(dim, index) * change.pull[number])
                    back.index_fill_(dim, index, change.back)
            y.copy_(factor * (y + back * (x - y) - lr * pull * x))

    def _unit(self, number: int) -> Unit:
        x, y, d, lr = [], [], [], []
        for name, dim, index in self._entries(number):
            after, rate = self._parameters[name].detach(), self._rate(name)
            before = self._before.get(name, after)
            left = 1 - rate * decay(self._optimizer, self._optimizer.param_groups[self._group[name]])
            moved = rate and name in self._before
            way = (left * before - after) / rate if moved else torch.zeros_like(after)
            parts = [as_real(part.index_select(dim, index)).flatten() for part in (before, after, way)]
            x.append(parts[0])
            y.append(parts[1])
            d.append(parts[2])
            lr.append(torch.full_like(parts[0], rate))
        return Unit(torch.cat(x), torch.cat(y), torch.cat(d), torch.cat(lr))

    def _rate(self, name: str) -> float:
        return float(self._optimizer.param_groups[self._group[name]]["lr"])

    def _entries(self, number: int) -> Iterator[tuple[str, int, Tensor]]:
        """All driven entries of a unit: parameter, dimension, positions."""
        group = next(g for g in self._space.groups if g.first <= number < g.first + g.units)
        for piece in group.slices:
            if piece.parameter and piece.driven:
                yield piece.tensor, piece.dim, torch.from_numpy(piece.index[number - group.first])


def _multiply(tensor: Tensor, dim: int, index: Tensor, factor: float) -> None:
    tensor.index_copy_(dim, index, tensor.index_select(dim, index) * factor)
