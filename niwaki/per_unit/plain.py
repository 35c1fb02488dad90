"""The specification: loops over units and entries, as in the papers. Slow; the fast path must give the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.dying import dying_parameters
from niwaki.core.isomorphic import group_of, peer_groups
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.per_unit.direction import Directions, decay
from niwaki.per_unit.exemplars import persistence
from niwaki.per_unit.index import as_real, scored_parameters, trained, unit_parameters
from niwaki.per_unit.peers import mean_scales
from niwaki.per_unit.protocol import Measure, UnitIterates, Units, UnitSubset, UnitUpdate, UpdateRule
from niwaki.per_unit.sums import UnitSums
from niwaki.per_unit.whole import WholeUnits, saliencies


class PlainUnits(Units):
    """Units as loops over groups, units and slices."""

    def __init__(
        self, space: SearchSpace, optimizer: Optimizer, numbers: IntArray | None = None, of: int | None = None
    ) -> None:
        self._space, self._optimizer = space, optimizer
        self._of = space.num_units if of is None else of
        self._number = torch.from_numpy(np.arange(space.num_units) if numbers is None else numbers)
        self._parameters = trained(scored_parameters(space), optimizer)
        self._dying = dying_parameters(space)
        self._whole = WholeUnits.of(space, self._parameters, torch.zeros((), device=self.device))
        self._directions = Directions(optimizer, list(self._parameters.values()))

    @property
    def device(self) -> torch.device:
        return next(iter(self._parameters.values())).device

    def remember(self) -> None:
        self._directions.remember()

    def forget(self) -> None:
        self._directions.forget()

    def values(
        self, measures: Sequence[Measure], seed: int, size: Tensor | None = None, by_layer: Tensor | None = None
    ) -> Tensor:
        owners, layers, weights, sums = [], [], [], []  # of each unit, or of what each layer has of it
        found = zip(self._parameters.items(), self._directions.after(), strict=True)
        ways = {name: direction.whole(weight.detach()) for (name, weight), direction in found}
        for number in range(self._space.num_units):
            held: dict[str, list[tuple[Tensor, Tensor, Tensor]]] = {}
            for name, dim, index in self._scored(number):
                weight = self._parameters[name]
                grad = torch.zeros_like(weight) if weight.grad is None else weight.grad.to_dense()
                x, gradient, direction = (
                    part.index_select(dim, index).flatten() for part in (weight.detach(), grad, ways[name])
                )
                layer = "" if by_layer is None else name.rpartition(".")[0]
                held.setdefault(layer, []).append((x, gradient, direction))
            nothing = self._parameters[next(iter(self._parameters))].detach().new_zeros(0)
            for layer, pieces in (held or {"": [(nothing, nothing, nothing)]}).items():  # only a gate makes it
                x, gradient, direction = (torch.cat(column) for column in zip(*pieces, strict=True))
                owners.append(number)
                layers.append(layer)
                weights.append(x)
                sums.append(_sums(x if size is None else x * size[number], gradient, direction))
        if by_layer is None:
            group = torch.from_numpy(peer_groups(self._space))
        else:
            group = torch.tensor([sorted(set(layers)).index(layer) for layer in layers])
        fields = {name: torch.stack([unit[name] for unit in sums]) for name in sums[0]}
        if any("distance" in measure.reads for measure in measures):
            alike = group_of(self._space)  # of equally many weights each: a structure is alone
            fields["distance"] = torch.stack(
                [
                    torch.stack([(x - y).norm() for y, h in zip(weights, alike, strict=True) if g == h]).sum()
                    for x, g in zip(weights, alike, strict=True)
                ]
            )
        if any("exemplar" in measure.reads for measure in measures):
            home = group_of(self._space).tolist()
            groups = [[w for w, g in zip(weights, home, strict=True) if g == one] for one in dict.fromkeys(home)]
            fields["exemplar"] = torch.cat([persistence(torch.stack(one)) for one in groups]).to(fields["square"])
        if any("scale" in measure.reads for measure in measures):
            fields["scale"] = mean_scales(self._space, self._parameters, fields["square"])
        units = UnitSums(self._of, self._number[owners], seed=seed, group=group, **fields)
        values = saliencies(measures, units, self._whole if by_layer is None else None)
        if by_layer is None:
            return values
        return torch.stack([_joined(row, owners, layers, by_layer.tolist()) for row in values])

    @property
    def uses(self) -> Tensor:
        return torch.ones(self._space.num_units) if self._whole is None else self._whole.uses

    def _scored(self, number: int) -> Iterator[tuple[str, int, Tensor]]:
        """What a unit is scored by: what produces it, and of a structure all that dies with it."""
        gone = [name for name, units in self._dying.items() if number in units and name in self._parameters]
        for name in gone:
            yield name, 0, torch.arange(len(self._parameters[name]))
        for name, dim, index in entries_of(self._space, number, produces=True):
            if name not in gone:
                yield name, dim, index

    def subset(self, units: BoolArray) -> UnitSubset:
        return PlainSubset(self._space, self._optimizer, units)


def entries_of(space: SearchSpace, number: int, *, produces: bool) -> Iterator[tuple[str, int, Tensor]]:
    """The producing (or all driven) entries of a unit: parameter, dimension, positions."""
    group = next(g for g in space.groups if g.first <= number < g.first + g.units)
    for piece in group.slices:
        if piece.parameter and (piece.role.produces if produces else piece.role.zeroed_by_method):
            yield piece.tensor, piece.dim, torch.from_numpy(piece.index[number - group.first])


def _sums(x: Tensor, gradient: Tensor, direction: Tensor) -> dict[str, Tensor]:
    """The sums over one unit of its weights, their gradient and their direction, each flat."""
    entries = len(x)
    x, gradient, direction = (as_real(part) for part in (x, gradient, direction))
    return {
        "entries": torch.tensor(entries).to(x),
        "square": x.square().sum(),
        "absolute": x.abs().sum(),
        "product": (x * gradient).sum(),
        "product_square": (x * gradient).square().sum(),
        "product_absolute": (x * gradient).abs().sum(),
        "gradient_absolute": gradient.abs().sum(),
        "aligned": (x * direction).sum(),
        "direction_square": direction.square().sum(),
    }


def _joined(values: Tensor, owners: list[int], layers: list[str], counted: list[bool]) -> Tensor:
    """Of each unit the mean, over its layers, of its value over the layer's mean among the units that are counted."""
    mean = {}
    for layer in set(layers):
        parts = zip(values, owners, layers, strict=True)
        own = [value for value, owner, where in parts if where == layer and counted[owner]]
        mean[layer] = float(torch.stack(own).mean()) if own else 0.0
    shares: dict[int, list[Tensor]] = {}
    for value, owner, layer in zip(values, owners, layers, strict=True):
        shares.setdefault(owner, []).append(value / mean[layer] if mean[layer] > 0 else value)
    return torch.stack([torch.stack(shares[owner]).mean() for owner in sorted(shares)])


class PlainSubset(UnitSubset):
    """Two iterates of units, as loops over units and slices. ``units`` [num_units]: those of the subset."""

    def __init__(self, space: SearchSpace, optimizer: Optimizer, units: BoolArray) -> None:
        self._space, self._optimizer = space, optimizer
        self._parameters = unit_parameters(space)
        held = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
        self._group = {name: held[id(parameter)] for name, parameter in self._parameters.items()}
        self._numbers = np.flatnonzero(units).tolist()
        self._before: dict[str, Tensor] = {}

    def remember(self) -> None:
        self._before = {name: weight.detach().clone() for name, weight in self._parameters.items()}

    def change(self, rule: UpdateRule) -> UnitUpdate:
        made = {number: rule.of_unit(self._unit(number)) for number in self._numbers}
        some = next(iter(made.values()), UnitUpdate(torch.tensor(1.0)))

        def of_all(values: dict[int, Tensor | None], neutral: float) -> Tensor | None:
            found = {number: value for number, value in values.items() if value is not None}
            like = next(iter(self._parameters.values()))
            dtype = torch.promote_types(like.dtype.to_real(), torch.float32)
            whole = torch.full((self._space.num_units,), neutral, dtype=dtype)
            for number, value in found.items():
                whole[number] = value
            return whole if found else None

        keep = of_all({number: torch.as_tensor(change.keep) for number, change in made.items()}, 1.0)
        return UnitUpdate(
            keep=torch.ones(self._space.num_units) if keep is None else keep,
            norm=of_all({number: change.norm for number, change in made.items()}, 0.0),
            penalty_step=of_all({number: change.penalty_step for number, change in made.items()}, 0.0),
            prox=of_all({number: change.prox for number, change in made.items()}, 0.0),
            damping=some.damping,
        )

    def apply(self, update: UnitUpdate) -> None:
        if isinstance(update.keep, float):
            self._multiply(update.keep)
        else:
            self._apply(update, update.keep)

    def _multiply(self, factor: float) -> None:
        for number in self._numbers:
            for name, dim, index in entries_of(self._space, number, produces=False):
                weight = self._parameters[name].detach()
                if factor:
                    _multiply(weight, dim, index, factor)
                else:
                    weight.index_fill_(dim, index, 0)

    def _apply(self, update: UnitUpdate, keep: Tensor) -> None:
        for name, weight in self._parameters.items():
            y, lr = weight.detach(), self._rate(name)
            x = self._before.get(name, y)
            factor, pull, back = torch.ones_like(y), torch.zeros_like(y), torch.zeros_like(y)
            for number in self._numbers:
                for dim, index in self._entries_in(number, name):
                    soft = 0 if update.prox is None else float(update.prox[number])
                    _multiply(factor, dim, index, float(keep[number]) / (1 + lr * soft))
                    if update.penalty_step is not None:
                        pull.index_add_(
                            dim, index, torch.ones_like(y).index_select(dim, index) * update.penalty_step[number]
                        )
                    back.index_fill_(dim, index, update.damping)
            y.copy_(factor * (y + back * (x - y) - lr * pull * x))

    def _entries_in(self, number: int, tensor: str) -> Iterator[tuple[int, Tensor]]:
        return ((dim, index) for name, dim, index in entries_of(self._space, number, produces=False) if name == tensor)

    def _unit(self, number: int) -> UnitIterates:
        x, y, d, lr = [], [], [], []
        for name, dim, index in entries_of(self._space, number, produces=False):
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
        return UnitIterates(torch.cat(x), torch.cat(y), torch.cat(d), torch.cat(lr))

    def _rate(self, name: str) -> float:
        return float(self._optimizer.param_groups[self._group[name]]["lr"])


def _multiply(tensor: Tensor, dim: int, index: Tensor, factor: float) -> None:
    tensor.index_copy_(dim, index, tensor.index_select(dim, index) * factor)
