"""The group soft threshold of many units in the metric of their optimizer: a plain loop, and all units at once."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.space import BoolArray, SearchSpace
from niwaki.methods.proximal import longer, metric_factor, metric_sums, soft_factor
from niwaki.per_unit.blocks import RowBlock, blocks_of, row_sums_of
from niwaki.per_unit.index import as_real, unit_parameters
from niwaki.per_unit.metric import metric_of
from niwaki.per_unit.plain import entries_of

_LEAST_RATE = 1e-12  # a rate of 0 moves nothing, and neither does a metric that is as large as its inverse
_STEPS = 6  # of Newton's method, from below: what is left is that a unit is shortened by a trace too much


@dataclass(frozen=True, slots=True, eq=False)
class UnitLengths:
    """Of each unit [num_units], with y its weights and h their metric: ||y||, ||h y|| and the number of weights."""

    norm: Tensor
    weighted: Tensor
    entries: Tensor


Strength = Callable[[UnitLengths], Tensor]  # the threshold of each unit, [num_units]


class MetricProx(ABC):
    """Some units of a space whose weights are shortened after each step of ``optimizer``, in its metric h:

        z = argmin_z  threshold * ||z|| + sum_i h_i (z_i - y_i)^2 / 2    for each unit

    which is zero if and only if ||h y|| <= threshold. Entries of several units take the product of their factors.

    ``penalty``: the threshold is a penalty in the objective, and h is that of the optimizer over the learning rate of
    each entry. Without, h is 1.
    """

    @abstractmethod
    def act(self, strength: Strength) -> Tensor:
        """Shorten them, each by its threshold. The units that are zero now, [num_units]; False for those outside."""


def metric_tensor(optimizer: Optimizer, group: Mapping[str, object], weight: Tensor, penalty: bool) -> Tensor:
    """h of a parameter, in a type that is wide enough for sums."""
    wide = torch.promote_types(weight.dtype.to_real(), torch.float32)
    h = metric_of(optimizer, group, weight) if penalty else None
    whole = torch.ones_like(weight, dtype=wide) if h is None else h.to(wide)
    if not penalty:
        return whole
    rate = torch.as_tensor(group["lr"], dtype=wide, device=weight.device)
    return whole / rate.clamp(min=_LEAST_RATE)


@final
class PlainProx(MetricProx):
    """The specification: one unit after the other."""

    def __init__(self, space: SearchSpace, optimizer: Optimizer, units: BoolArray, penalty: bool) -> None:
        self._space, self._optimizer, self._penalty = space, optimizer, penalty
        self._numbers = np.flatnonzero(units).tolist()

    def act(self, strength: Strength) -> Tensor:
        parameters = unit_parameters(self._space)
        groups = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        metrics = {
            name: metric_tensor(self._optimizer, groups[id(p)], p, self._penalty) for name, p in parameters.items()
        }
        factors = {name: torch.ones_like(h) for name, h in metrics.items()}
        zero = torch.zeros(self._space.num_units, dtype=torch.bool)
        lengths = torch.zeros(3, self._space.num_units, dtype=next(iter(metrics.values())).dtype)
        for number in self._numbers:
            y, h = self._vectors(number, parameters, metrics)
            lengths[:, number] = torch.stack([y.norm(), (h * y).norm(), y.new_tensor(float(len(y)))])
        threshold = strength(UnitLengths(*lengths))
        for number in self._numbers:
            y, h = self._vectors(number, parameters, metrics)
            limit, r = threshold[number], y.new_zeros(())
            for _ in range(_STEPS):
                r = longer(r, *metric_sums((h * y).square(), h, r, limit))
            zero[number] = r == 0 if limit > 0 else y.norm() == 0
            for name, dim, index in entries_of(self._space, number, produces=False):
                mine = metrics[name].index_select(dim, index)
                by = metric_factor(mine, r, limit) if limit > 0 else torch.ones_like(mine)
                factors[name].index_copy_(dim, index, factors[name].index_select(dim, index) * by)
        for name, parameter in parameters.items():
            parameter.detach().mul_(factors[name].to(parameter.dtype))
        return zero

    def _vectors(
        self, number: int, parameters: Mapping[str, Tensor], metrics: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        ys, hs = [], []
        for name, dim, index in entries_of(self._space, number, produces=False):
            y = as_real(parameters[name].detach().index_select(dim, index))
            h = metrics[name].index_select(dim, index)
            ys.append(y.flatten().to(h))
            hs.append((h.unsqueeze(-1).expand(y.shape) if y.dim() > h.dim() else h).flatten())
        return torch.cat(ys), torch.cat(hs)


@dataclass(frozen=True, slots=True, eq=False)
class _RowsAlong:
    """The rows of a block along one of its dimensions, and one unit of each: ``unit`` [n], padded with num_units."""

    block: int
    dim: int
    unit: Tensor

    def spread(self, values: Tensor, dims: int) -> Tensor:
        """``values`` [num_units + 1] of the units of the rows, so that they broadcast to a tensor of ``dims``."""
        shape = [1] * dims
        shape[self.dim] = -1
        return values[self.unit].view(shape)

    def total(self, values: Tensor, into: Tensor) -> None:
        """Add the sums over the rows of ``values`` to ``into`` [num_units + 1]."""
        others = [dim for dim in range(values.dim()) if dim != self.dim]
        into.index_add_(0, self.unit, (values.sum(others) if others else values).to(into))


@final
class FastProx(MetricProx):
    """All units at once, without waiting for the device."""

    def __init__(self, space: SearchSpace, optimizer: Optimizer, units: BoolArray, penalty: bool) -> None:
        self._optimizer, self._penalty, self._outside = optimizer, penalty, space.num_units
        some = next(iter(unit_parameters(space).values()))
        self._device, self._dtype = some.device, torch.promote_types(some.dtype.to_real(), torch.float32)
        self._blocks = blocks_of(space, optimizer, units)
        inside = np.append(units, False)
        self._rows = [
            _RowsAlong(
                number, dim, torch.from_numpy(np.where(inside[column], column, space.num_units)).to(self._device)
            )
            for number, block in enumerate(self._blocks)
            for dim, table in zip(block.dims, block.units, strict=True)
            for column in table.T
            if inside[column].any()
        ]
        self._concerned = torch.from_numpy(units).to(self._device)
        self._entries = self._empty()
        for rows in self._rows:
            each = as_real(self._blocks[rows.block].read().detach()).numel() / len(rows.unit)
            self._entries.index_add_(0, rows.unit, self._entries.new_full(rows.unit.shape, each))

    def act(self, strength: Strength) -> Tensor:
        return self._in_metric(strength) if self._penalty else self._plainly(strength)

    def _plainly(self, strength: Strength) -> Tensor:
        """With h = 1 a unit is multiplied by max(0, 1 - threshold / ||y||). Weights are read twice, a part at a time:
        memory for a copy of them all costs more."""
        norm = self._empty()
        sums = [row_sums_of(block, ("square",), 1.0)["square"] for block in self._blocks]
        for rows in self._rows:
            norm.index_add_(0, rows.unit, sums[rows.block][self._blocks[rows.block].dims.index(rows.dim)].to(norm))
        norm = norm.sqrt()
        limit = self._limits(strength, norm, norm)
        factor = torch.where(limit > 0, soft_factor(norm, limit), 1)
        for number, block in enumerate(self._blocks):
            dims = block.weights[0].dim() + block.weights[0].is_complex()
            by = [rows.spread(factor, dims) for rows in self._rows if rows.block == number]
            _multiply(block, math.prod(by[1:], start=by[0]))
        return self._concerned & torch.where(limit > 0, factor == 0, norm == 0)[:-1]

    def _limits(self, strength: Strength, norm: Tensor, weighted: Tensor) -> Tensor:
        """The threshold of each unit and of none, [num_units + 1]; 0 for those outside."""
        found = strength(UnitLengths(norm[:-1], weighted[:-1], self._entries[:-1]))
        return torch.cat([torch.where(self._concerned, found.to(norm), 0), norm.new_zeros(1)])

    def _in_metric(self, strength: Strength) -> Tensor:
        ys = [as_real(block.read()).to(self._dtype) for block in self._blocks]
        hs = [self._metric(block, y) for block, y in zip(self._blocks, ys, strict=True)]
        squares = [(h * y).square() for h, y in zip(hs, ys, strict=True)]
        norm, weighted = self._empty(), self._empty()
        for rows in self._rows:
            rows.total(ys[rows.block].square(), norm)
            rows.total(squares[rows.block], weighted)
        limit = self._limits(strength, norm.sqrt(), weighted.sqrt())
        r = self._empty()
        for _ in range(_STEPS):
            total, slope = self._empty(), self._empty()
            for rows, square, h, under in self._under(squares, hs, r, limit):
                ratio = square / under.square()
                rows.total(ratio, total)
                rows.total(ratio * h / under, slope)
            r = torch.where(limit > 0, longer(r, total, slope), 0)
        factors = [torch.ones_like(h) for h in hs]
        for rows in self._rows:
            h = hs[rows.block]
            by = metric_factor(h, rows.spread(r, h.dim()), rows.spread(limit, h.dim()))
            factors[rows.block] *= torch.where(rows.spread(limit, h.dim()) > 0, by, 1)
        for block, factor in zip(self._blocks, factors, strict=True):
            _multiply(block, factor)
        return self._concerned & torch.where(limit > 0, r == 0, norm == 0)[:-1]

    def _under(
        self, squares: list[Tensor], hs: list[Tensor], r: Tensor, limit: Tensor
    ) -> Iterator[tuple[_RowsAlong, Tensor, Tensor, Tensor]]:
        """Of each kind of rows (h y)^2, h and h r + t; of what has no threshold, a number that does no harm."""
        for rows in self._rows:
            h = hs[rows.block]
            own = rows.spread(limit, h.dim())
            yield rows, squares[rows.block], h, torch.where(own > 0, h * rows.spread(r, h.dim()) + own, 1)

    def _empty(self) -> Tensor:
        return torch.zeros(self._outside + 1, dtype=self._dtype, device=self._device)

    def _metric(self, block: RowBlock, like: Tensor) -> Tensor:
        """h of the entries that are read of a block."""
        group = self._optimizer.param_groups[block.group]
        whole = [metric_tensor(self._optimizer, group, weight, self._penalty) for weight in block.weights]
        h = replace(block, weights=whole).read().to(self._dtype)
        return h.unsqueeze(-1).expand(like.shape) if like.dim() > h.dim() else h


def _multiply(block: RowBlock, factor: Tensor) -> None:
    """Multiply what `RowBlock.read` gives by ``factor``, part by part as it is written."""
    first = 0
    for part in block.parts():
        y = block.read(part)
        length = y.shape[0]
        by = factor if factor.shape[0] == 1 else factor[first : first + length]
        first += length
        y.mul_((by[..., 0] if y.is_complex() else by).to(y.dtype))
        block.write(y, part)
