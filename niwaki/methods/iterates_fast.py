"""The fast path of `Iterates`: all units at once, a handful of operations per parameter, none waits for the device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import IntArray
from niwaki.core.segments import unit_parameters
from niwaki.core.space import BoolArray, Place, SearchSpace
from niwaki.criteria.sums import products, squares
from niwaki.methods.direction import decay
from niwaki.methods.iterates import Change, Iterates, Rule, Sums

_MOST = 0.9  # rows are picked out of a tensor where at most this share of them is concerned
_NONE = torch.empty(0)


@dataclass(slots=True, eq=False)
class Block:
    """What is worked on together: many vectors in a row, one tensor, or some rows of one tensor along one dimension.

    ``units`` lists, for each of the driven dimensions ``dims``, the units of each of its positions, [n, K]; a position
    with all that lies behind it is a row, and ``spans`` are its rows among those of all blocks. ``rows``: the positions
    picked out. ``x`` lives from `remember` to `apply`
    (its memory longer), ``y`` from `change` to `apply`.
    """

    weights: list[Tensor]
    dims: tuple[int, ...]
    units: list[IntArray]
    group: int
    rows: Tensor | None = None
    spans: list[slice] = field(default_factory=list)
    x: Tensor | None = None
    y: Tensor | None = None

    def read(self) -> Tensor:
        """The weights as the one tensor that is worked on."""
        if len(self.weights) > 1:
            return torch.cat(self.weights)
        return self.weights[0] if self.rows is None else self.weights[0].index_select(self.dims[0], self.rows)

    def write(self, value: Tensor) -> None:
        """The way back."""
        if len(self.weights) > 1:
            torch._foreach_copy_(self.weights, list(torch.split(value, [len(weight) for weight in self.weights])))
        elif self.rows is not None:
            self.weights[0].index_copy_(self.dims[0], self.rows, value)

    def spread(self, values: Tensor, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The ``values`` of all rows as a tensor that broadcasts to the block; where two dimensions meet, joined."""
        whole = None
        for dim, span in zip(self.dims, self.spans, strict=True):
            shape = [1] * self.weights[0].dim()
            shape[dim] = -1
            part = values[span].to(self.weights[0].device).view(shape)
            whole = part if whole is None else join(whole, part)
        assert whole is not None
        return whole


class FastIterates(Iterates):
    """Iterates as segments of rows. ``units`` [num_units]: those concerned; x is kept of their rows only."""

    def __init__(self, space: SearchSpace, optimizer: Optimizer, units: BoolArray) -> None:
        self._optimizer, self._num_units = optimizer, space.num_units
        self._blocks = _blocks(space, optimizer, units)
        outside = space.num_units
        width = max([1, *(table.shape[1] for block in self._blocks for table in block.units)])
        tables = [_wide(table, width, outside) for block in self._blocks for table in block.units]
        table = np.concatenate([np.empty((0, width), np.int64), *tables])
        table = np.where(np.append(units, False)[table], table, outside)
        row, column = np.nonzero(table < outside)
        covered = np.asarray((table < outside).any(axis=1))
        some = next(iter(unit_parameters(space).values()))
        self._device, self._dtype = some.device, torch.promote_types(some.dtype, torch.float32)

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
            if len(block.weights) > 1 or (block.rows is not None and block.x is None):
                block.x = block.read()
            elif block.rows is not None:
                torch.index_select(block.weights[0], block.dims[0], block.rows, out=block.x)
            else:
                block.x = torch.empty_like(block.weights[0]) if block.x is None else block.x
                whole.append((block.x, block.weights[0]))
        if whole:
            torch._foreach_copy_([x for x, _ in whole], [weight for _, weight in whole])

    def change(self, rule: Rule) -> Change:
        reads, lr = rule.reads, self._rates()
        rows: dict[str, list[Tensor]] = {}
        for block in self._blocks:
            y = block.y = block.read()
            x = y if block.x is None else block.x
            d = self._direction(block, x, y) if not reads.isdisjoint({"aligned", "direction", "ahead"}) else x
            pairs = {"square": (x, x), "inner": (x, y), "after": (y, y), "aligned": (x, d), "direction": (d, d)}
            pairs["ahead"] = (y, d)
            for name, (one, other) in pairs.items():
                if name in reads:
                    parts = squares(one, block.dims) if one is other else products(one, other, block.dims)
                    rows.setdefault(name, []).extend(parts)
        found = {
            name: torch.cat([part.to(self._device, self._dtype) for part in parts]) for name, parts in rows.items()
        }
        if "weighted" in reads:
            found["weighted"] = found["square"] * lr
        if "moved" in reads:
            found["moved"] = found["direction"] * lr
        after = found.pop("after", None)
        sums = {name: self._totals([values])[0] for name, values in found.items()}
        if after is not None:
            sums["after"] = self._totals([after * mask for mask in self._in_group])
            sums["rates"] = torch.stack([torch.as_tensor(self._rate(g)).to(after) for g in self._groups])
        change = rule.of_sums(Sums(**dict.fromkeys(Sums.__dataclass_fields__, _NONE) | sums))
        keep = torch.where(self._concerned, change.keep, 1)
        return Change(keep, change.norm, change.pull, change.soft, change.back)

    def apply(self, change: Change) -> None:
        lr = self._rates()
        factor = self._of_rows(change.keep, 1.0)
        if change.soft is not None:
            by = lr if isinstance(lr, float) or lr.dim() == 0 else lr.unsqueeze(1)
            factor = factor / (1 + by * self._of_rows(change.soft, 0.0))
        factor = factor.prod(1)
        pull = None if change.pull is None else lr * self._of_rows(change.pull, 0.0).sum(1)
        back = self._covered.to(factor) * change.back if change.back else None
        for block in self._blocks:
            y = block.read() if block.y is None else block.y
            of_y = block.spread(factor, torch.mul)
            of_x = None if pull is None else of_y * -block.spread(pull, torch.add)
            if back is not None:
                share = of_y * block.spread(back, torch.maximum)
                of_y, of_x = of_y - share, share if of_x is None else of_x + share
            y.mul_(of_y.to(y.dtype))
            if of_x is not None:
                assert block.x is not None
                y.addcmul_(block.x, of_x.to(y.dtype))
            block.write(y)
            block.y = None

    def _direction(self, block: Block, x: Tensor, y: Tensor) -> Tensor:
        """d of a block. At learning rate 0 nothing moves, and it is zero: nobody asks for it then."""
        rate, decayed = self._rate(block.group), decay(self._optimizer, self._optimizer.param_groups[block.group])
        if isinstance(rate, Tensor):
            d = (x - y).mul_(torch.where(rate > 0, 1 / rate, 0))
        else:
            d = (x - y).mul_(1 / rate if rate else 0.0)
        return d.sub_(x, alpha=decayed) if decayed else d

    def _rate(self, group: int) -> float | Tensor:
        rate: float | Tensor = self._optimizer.param_groups[group]["lr"]
        return rate if isinstance(rate, Tensor) else float(rate)

    def _rates(self) -> float | Tensor:
        """The learning rate of each row, or one for all."""
        if len(self._groups) == 1:
            return self._rate(self._groups[0])
        rates = [mask * self._rate(group) for mask, group in zip(self._in_group, self._groups, strict=True)]
        return torch.stack(rates).sum(0)

    def _totals(self, rows: list[Tensor]) -> Tensor:
        """Sums per unit of each of ``rows``: [len(rows), num_units]."""
        table = torch.stack(rows)
        sums = table.new_zeros(len(rows), self._num_units)
        return sums.index_add_(1, self._unit, table.index_select(1, self._row))

    def _of_rows(self, values: Tensor, neutral: float) -> Tensor:
        """The ``values`` [num_units] of the units of each row, [rows, K]."""
        return torch.cat([values, values.new_full((1,), neutral)])[self._table]


def _blocks(space: SearchSpace, optimizer: Optimizer, units: BoolArray) -> list[Block]:
    """The driven tensors that hold any of ``units`` [num_units], as blocks."""
    held = {id(p): number for number, group in enumerate(optimizer.param_groups) for p in group["params"]}
    parameters, concerned = unit_parameters(space), np.append(units, False)
    driven: dict[str, list[Place]] = {}
    for place in space.places:
        if place.parameter and place.driven:
            driven.setdefault(place.tensor, []).append(place)
    blocks: list[Block] = []
    vectors: dict[tuple[torch.device, torch.dtype, int], list[str]] = {}
    for name, places in driven.items():
        weight, group = parameters[name].detach(), held[id(parameters[name])]
        which = [concerned[place.units].any(axis=1) for place in places]
        if not any(mask.any() for mask in which):
            continue
        if weight.dim() == 1:
            vectors.setdefault((weight.device, weight.dtype, group), []).append(name)
        elif len(places) == 1 and which[0].mean() <= _MOST:
            rows = torch.from_numpy(np.flatnonzero(which[0])).to(weight.device)
            blocks.append(Block([weight], (places[0].dim,), [places[0].units[which[0]]], group, rows))
        else:
            blocks.append(Block([weight], tuple(p.dim for p in places), [p.units for p in places], group))
    for (_, _, group), names in vectors.items():
        width = max(driven[name][0].units.shape[1] for name in names)
        tables = [_wide(driven[name][0].units, width, space.num_units) for name in names]
        blocks.append(Block([parameters[name].detach() for name in names], (0,), [np.concatenate(tables)], group))
    first = 0
    for block in blocks:
        for table in block.units:
            block.spans.append(slice(first, first + len(table)))
            first += len(table)
    return blocks


def _wide(table: IntArray, width: int, padding: int) -> IntArray:
    """``table`` [n, K] with ``width`` columns."""
    return np.pad(table, ((0, 0), (0, width - table.shape[1])), constant_values=padding)
