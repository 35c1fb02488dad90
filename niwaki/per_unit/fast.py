"""The fast path: all units at once, a handful of operations per parameter, none of which waits for the device."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.per_unit.blocks import blocked_sums, blocks_of, row_sums_of, wide
from niwaki.per_unit.direction import Directions, decay, joined
from niwaki.per_unit.index import UnitIndex, scored_parameters, trained, unit_parameters
from niwaki.per_unit.layers import Layers
from niwaki.per_unit.peers import among
from niwaki.per_unit.protocol import IterateSums, Measure, Units, UnitSubset, UnitUpdate, UpdateRule
from niwaki.per_unit.sums import DIRECTION_SUMS, UnitSums, enlarged
from niwaki.per_unit.whole import WholeUnits, saliencies

Rows = list[tuple[Tensor, int, Tensor]]  # (parameter, dimension, positions)


class FastUnits(Units):
    """Units as segments of rows of the parameters.

    ``numbers``: what the units are called among ``of`` units, of which they are those left.
    """

    def __init__(
        self, space: SearchSpace, optimizer: Optimizer, numbers: IntArray | None = None, of: int | None = None
    ) -> None:
        self._space, self._optimizer = space, optimizer
        self._parameters = trained(scored_parameters(space), optimizer)
        self._index = UnitIndex.of(space, self._parameters)
        self._whole = WholeUnits.of(space, self._parameters, self._index.entries)
        self._of = space.num_units if of is None else of
        numbers = np.arange(space.num_units) if numbers is None else numbers
        self._number = torch.from_numpy(numbers).to(self._index.entries.device)
        self._weights: list[list[Tensor]] = [
            [self._parameters[name] for name in bundle.names] for bundle in self._index.bundles
        ]
        self._directions = Directions(optimizer, [weight for weights in self._weights for weight in weights])

    @property
    def device(self) -> torch.device:
        return self._index.entries.device

    @property
    def uses(self) -> Tensor:
        return torch.ones_like(self._index.entries) if self._whole is None else self._whole.uses

    def remember(self) -> None:
        self._directions.remember()

    def forget(self) -> None:
        self._directions.forget()

    @cached_property
    def _layers(self) -> Layers:
        return Layers.of(self._index, self._parameters)

    def values(
        self, measures: Sequence[Measure], seed: int, size: Tensor | None = None, by_layer: Tensor | None = None
    ) -> Tensor:
        reads = {name for measure in measures for name in measure.reads}
        index, rows = self._index, self._rows(reads)
        if by_layer is not None:
            return self._values_by_layer(measures, seed, size, by_layer, rows)
        others = among(self._space, self._parameters, reads, index.entries)
        totals = index.total(rows) if size is None else enlarged(index.total(rows), size)
        sums = UnitSums(self._of, self._number, index.entries, seed, **totals, **others)
        return saliencies(measures, sums, self._whole)

    def _values_by_layer(
        self,
        measures: Sequence[Measure],
        seed: int,
        size: Tensor | None,
        counted: Tensor,
        rows: dict[str, list[Tensor]],
    ) -> Tensor:
        layers = self._layers
        index, number = layers.index, self._number[layers.unit]
        totals = index.total(rows) if size is None else enlarged(index.total(rows), size[layers.unit])
        sums = UnitSums(self._of, number, index.entries, seed, group=layers.layer, **totals)
        return layers.joined(torch.stack([measure.saliency(sums) for measure in measures]), counted)

    def _rows(self, reads: set[str]) -> dict[str, list[Tensor]]:
        """The sums over rows that are in ``reads``, bundle by bundle."""
        found = [] if reads.isdisjoint(DIRECTION_SUMS) else self._directions.after()
        rows: dict[str, list[Tensor]] = {}
        first = 0
        for bundle, weights in zip(self._index.bundles, self._weights, strict=True):
            here = found[first : first + len(weights)]
            first += len(weights)
            x, gradient = bundle.join(weights), _joined_gradient([weight.grad for weight in weights], weights)
            direction = joined(here, weights) if here else None
            for name, parts in blocked_sums(x.detach(), gradient, direction, bundle.dims, reads).items():
                rows.setdefault(name, []).extend(parts)
        return rows

    def subset(self, units: BoolArray) -> UnitSubset:
        return FastSubset(self._space, self._optimizer, units)


class FastSubset(UnitSubset):
    """Some units as rows of the parameters. What kind of rows depends on what is done to them, so they are looked up
    when it is first done."""

    def __init__(self, space: SearchSpace, optimizer: Optimizer, units: BoolArray) -> None:
        self._space, self._optimizer, self._units = space, optimizer, units

    @cached_property
    def _rows(self) -> Rows:
        parameters, inside = unit_parameters(self._space), np.append(self._units, False)
        rows: Rows = []
        for place in self._space.dims:
            if place.parameter and place.role.zeroed_by_method:
                times = inside[place.units].sum(axis=1)
                for already in range(int(times.max(initial=0))):  # a position of two units is multiplied twice
                    weight = parameters[place.tensor]
                    rows.append((weight, place.dim, _positions(times > already, weight)))
        return rows

    @cached_property
    def _iterates(self) -> RowIterates:
        return RowIterates(self._space, self._optimizer, self._units)

    def remember(self) -> None:
        self._iterates.remember()

    def change(self, rule: UpdateRule) -> UnitUpdate:
        return self._iterates.change(rule)

    def apply(self, update: UnitUpdate) -> None:
        if not isinstance(update.keep, float):
            self._iterates.apply(update, update.keep)
            return
        for weight, dim, rows in self._rows:
            if update.keep:
                weight.index_copy_(dim, rows, weight.index_select(dim, rows).mul_(update.keep))
            else:
                weight.index_fill_(dim, rows, 0)


def _positions(which: ArrayLike, like: Tensor) -> Tensor:
    return torch.from_numpy(np.flatnonzero(which)).to(like.device)


def _joined_gradient(gradients: Sequence[Tensor | None], weights: Sequence[Tensor]) -> Tensor | None:
    """The gradients of a bundle as one tensor; None where no gradient reached any of it."""
    if all(gradient is None for gradient in gradients):
        return None
    parts = [
        torch.zeros_like(weight) if gradient is None else gradient.to_dense() if gradient.is_sparse else gradient
        for gradient, weight in zip(gradients, weights, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


_NONE = torch.empty(0)


_OF_DIRECTIONS = frozenset({"aligned", "direction", "ahead", "moved"})


class RowIterates:
    """Two iterates of units, as segments of rows. ``units`` [num_units]: those concerned; x is of their rows only."""

    def __init__(self, space: SearchSpace, optimizer: Optimizer, units: BoolArray) -> None:
        self._optimizer, self._num_units = optimizer, space.num_units
        self._blocks = blocks_of(space, optimizer, units)
        outside = space.num_units
        width = max([1, *(table.shape[1] for block in self._blocks for table in block.units)])
        tables = [wide(table, width, outside) for block in self._blocks for table in block.units]
        table = np.concatenate([np.empty((0, width), np.int64), *tables])
        table = np.where(np.append(units, False)[table], table, outside)
        row, column = np.nonzero(table < outside)
        covered = np.asarray((table < outside).any(axis=1))
        some = next(iter(unit_parameters(space).values()))
        self._device, self._dtype = some.device, torch.promote_types(some.dtype.to_real(), torch.float32)

        def here(array: IntArray | BoolArray) -> Tensor:
            return torch.from_numpy(array).to(self._device)

        # Pair i says that row _row[i] belongs to unit _unit[i]; _table has the units of each row, padded.
        self._table, self._row, self._unit = here(table), here(row), here(table[row, column])
        self._covered, self._concerned = here(covered), here(units)
        group = np.repeat([block.group for block in self._blocks for _ in block.units], list(map(len, tables)))
        self._groups = sorted({block.group for block in self._blocks})
        self._in_group = [here(np.equal(group, number)).to(self._dtype) for number in self._groups]

    def remember(self) -> None:
        whole: list[tuple[Tensor, Tensor]] = []
        for block in self._blocks:
            if block.copied and (len(block.weights) > 1 or block.x is None):
                block.x = block.read()
            elif block.rows is not None:
                torch.index_select(block.weights[0], block.dims[0], block.rows, out=block.x)
            else:
                block.x = torch.empty_like(block.weights[0]) if block.x is None else block.x
                whole.append((block.x, block.weights[0]))
        if whole:
            torch._foreach_copy_([x for x, _ in whole], [weight for _, weight in whole])

    def change(self, rule: UpdateRule) -> UnitUpdate:
        reads, rows = rule.reads, dict[str, list[Tensor]]()
        needed = {"square", "inner", "after"} & reads
        if not reads.isdisjoint(_OF_DIRECTIONS):
            needed = needed - {"inner"} | {"square", "along", "way"}
        for block in self._blocks:
            for name, found in row_sums_of(block, needed, self._left_of(block.group)).items():
                rows.setdefault(name, []).extend(found)
        sums = {name: torch.cat([part.to(self._device, self._dtype) for part in parts]) for name, parts in rows.items()}
        change = rule.of_sums(self._sums(self._completed(reads, sums)))
        assert isinstance(change.keep, Tensor)
        keep = torch.where(self._concerned, change.keep, 1)
        return UnitUpdate(keep, change.norm, change.penalty_step, change.prox, change.damping)

    def apply(self, change: UnitUpdate, keep: Tensor) -> None:
        lr = self._rates()
        factor = self._of_rows(keep, 1.0)
        if change.prox is not None:
            by = lr if isinstance(lr, float) or lr.dim() == 0 else lr.unsqueeze(1)
            factor = factor / (1 + by * self._of_rows(change.prox, 0.0))
        factor = factor.prod(1)
        pull = None if change.penalty_step is None else lr * self._of_rows(change.penalty_step, 0.0).sum(1)
        back = self._covered.to(factor) * change.damping if change.damping else None
        for block in self._blocks:
            of_y = block.spread(factor, torch.mul)
            of_x = None if pull is None else of_y * -block.spread(pull, torch.add)
            if back is not None:
                share = of_y * block.spread(back, torch.maximum)
                of_y, of_x = of_y - share, share if of_x is None else of_x + share
            for part in block.parts():
                y = block.read(part)
                y.mul_(_of(of_y, part).to(y.dtype))
                if of_x is not None:
                    assert block.x is not None
                    y.addcmul_(block.x[part], _of(of_x, part).to(y.dtype))
                block.write(y, part)

    def _completed(self, reads: frozenset[str], sums: dict[str, Tensor]) -> dict[str, Tensor]:
        """The sums over rows that a rule ``reads``, from those that were taken; d is zero at learning rate 0."""
        lr = self._rates()
        if "way" in sums:
            left, square = self._left(), sums["square"]
            over = torch.where(lr > 0, 1 / lr, 0) if isinstance(lr, Tensor) else 1 / lr if lr else 0.0
            aligned, step = over * sums["along"], over * sums["way"]  # <x, d> and <lr d, d>
            sums |= {"inner": left * square - sums["along"], "aligned": aligned, "direction": over * step}
            sums["ahead"] = left * aligned - step
        if "weighted" in reads:
            sums["weighted"] = sums["square"] * lr
        if "moved" in reads:
            sums["moved"] = sums["direction"] * lr
        return {name: values for name, values in sums.items() if name in reads}

    def _sums(self, found: dict[str, Tensor]) -> IterateSums:
        after = found.pop("after", None)
        sums = {name: self._totals([values])[0] for name, values in found.items()}
        if after is not None:
            sums["after"] = self._totals([after * mask for mask in self._in_group])
            sums["rates"] = torch.stack([torch.as_tensor(self._rate(g)).to(after) for g in self._groups])
        return IterateSums(**dict.fromkeys(IterateSums.__dataclass_fields__, _NONE) | sums)

    def _rate(self, group: int) -> float | Tensor:
        rate: float | Tensor = self._optimizer.param_groups[group]["lr"]
        return rate if isinstance(rate, Tensor) else float(rate)

    def _rates(self) -> float | Tensor:
        """The learning rate of each row, or one for all."""
        if len(self._groups) == 1:
            return self._rate(self._groups[0])
        rates = [mask * self._rate(group) for mask, group in zip(self._in_group, self._groups, strict=True)]
        return torch.stack(rates).sum(0)

    def _left(self) -> float | Tensor:
        """What decoupled weight decay leaves in a step, of each row, or one for all."""
        if len(self._groups) == 1:
            return self._left_of(self._groups[0])
        rates = [mask * self._left_of(group) for mask, group in zip(self._in_group, self._groups, strict=True)]
        return torch.stack(rates).sum(0)

    def _left_of(self, group: int) -> float | Tensor:
        return 1 - self._rate(group) * decay(self._optimizer, self._optimizer.param_groups[group])

    def _totals(self, rows: list[Tensor]) -> Tensor:
        """Sums per unit of each of ``rows``: [len(rows), num_units]."""
        table = torch.stack(rows)
        sums = table.new_zeros(len(rows), self._num_units)
        return sums.index_add_(1, self._unit, table.index_select(1, self._row))

    def _of_rows(self, values: Tensor, neutral: float) -> Tensor:
        """The ``values`` [num_units] of the units of each row, [rows, K]."""
        return torch.cat([values, values.new_full((1,), neutral)])[self._table]


def _of(values: Tensor, part: slice) -> Tensor:
    """Those of the part; one value for all positions of the first dimension is that of the part too."""
    return values if values.shape[0] == 1 else values[part]
