"""The gates of terms without parameters as weights of units: each is one weight, of value 1 at first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from niwaki.core.space import BoolArray
from niwaki.per_unit.protocol import IterateSums, Measure, Units, UnitSubset, UnitUpdate, UpdateRule
from niwaki.per_unit.sums import DIRECTION_SUMS, GRADIENT_SUMS, UnitSums
from niwaki.per_unit.trained_gates import TrainedGates

Closure = Callable[[], bool]  # whether the step at hand was given one


@final
class GatedUnits(Units):
    """The units of ``inner`` with the gates of those that have one.

    A unit that nothing but a gate makes is scored as if it were one weight, x = v with the gradient h = dL/dv; in one
    that weights make too, criteria of the gradient have the gate's term beside that of the weights.

    Args:
        inner: the weights of all units.
        gates: their gates.
        unit: the unit of each gate, [gates], in the numbers of ``inner``; -1 for those that have left.
        alone: the units that nothing but a gate makes, [num_units] of ``inner``.
        closure: whether the optimizer's step at hand was given a closure.
    """

    def __init__(
        self, inner: Units, gates: TrainedGates, unit: Sequence[int], alone: BoolArray, closure: Closure
    ) -> None:
        self._inner, self._gates, self._closure = inner, gates, closure
        self._alone = alone
        self._which = [(place, number) for place, number in enumerate(unit) if number >= 0]
        numbers = [number for _, number in self._which]
        self._unit = torch.tensor(numbers, dtype=torch.int64, device=inner.device)
        self._place = torch.tensor([place for place, _ in self._which], dtype=torch.int64, device=gates.values.device)
        self._bare = torch.from_numpy(alone[numbers]).to(inner.device)

    @property
    def device(self) -> torch.device:
        return self._inner.device

    @property
    def uses(self) -> Tensor:
        return self._inner.uses

    def remember(self) -> None:
        self._inner.remember()

    def forget(self) -> None:
        self._inner.forget()

    def values(
        self, measures: Sequence[Measure], seed: int, size: Tensor | None = None, by_layer: Tensor | None = None
    ) -> Tensor:
        found = self._inner.values(measures, seed, size, by_layer)
        if not self._which:
            return found
        reads = {name for measure in measures for name in measure.reads}
        unit = self._unit
        x = self._gates.values[self._place].to(found)
        x = x if size is None else x * size[unit].to(found)
        sloping = not reads.isdisjoint(GRADIENT_SUMS | DIRECTION_SUMS)
        slope = self._gates.slopes(self._closure())[self._place].to(found) if sloping else torch.zeros_like(x)
        own = term_sums(x, slope, found.shape[1], seed)
        for row, measure in zip(found, measures, strict=True):
            value = measure.saliency(own)
            if by_layer is not None:  # over the mean, as those of layers are
                mean = value.mean()
                value = value / torch.where(mean > 0, mean, 1)
            beside = row[unit] if GRADIENT_SUMS.isdisjoint(measure.reads) else row[unit] + value
            row[unit] = torch.where(self._bare, value, beside)
        return found

    def subset(self, units: BoolArray) -> UnitSubset:
        weighty = units & ~self._alone
        inner = self._inner.subset(weighty) if weighty.any() else None
        which = [(place, number) for place, number in self._which if units[number]]
        return _GatedSubset(inner, self._gates, which, self._closure, len(units), self._inner.device)


@final
class _GatedSubset(UnitSubset):
    """``inner``: the units that weights make, None if there are none; ``which``: the places of gates, and the unit of
    each, of ``num_units``."""

    def __init__(
        self,
        inner: UnitSubset | None,
        gates: TrainedGates,
        which: Sequence[tuple[int, int]],
        closure: Closure,
        num_units: int,
        device: torch.device,
    ) -> None:
        self._inner, self._gates, self._closure = inner, gates, closure
        self._num_units, self._device = num_units, device
        self._place = torch.tensor([place for place, _ in which], dtype=torch.int64, device=gates.values.device)
        self._unit = torch.tensor([number for _, number in which], dtype=torch.int64, device=device)
        bare = [number for number, (place, _) in enumerate(which) if gates.is_alone(place)]
        self._bare = torch.tensor(bare, dtype=torch.int64, device=device)

    def remember(self) -> None:
        """Nothing changes a gate but what is done to it here."""
        if self._inner is not None:
            self._inner.remember()

    def change(self, rule: UpdateRule) -> UnitUpdate:
        made = self._made(rule)
        if not len(self._bare):
            return made
        x, d, unit = self._x()[self._bare], self._slope()[self._bare], self._unit[self._bare]
        change = rule.of_sums(_iterates(x, d, self._gates.rate(), rule.reads))

        def joined(weights: Tensor | float | None, gates: Tensor | float | None, neutral: float) -> Tensor | None:
            if gates is None:
                return weights if isinstance(weights, Tensor) else None
            like = weights if isinstance(weights, Tensor) else x.new_full((self._num_units,), neutral)
            return like.index_put((unit,), torch.as_tensor(gates).to(like).expand(len(unit)))

        keep = joined(made.keep, change.keep, 1.0)
        assert keep is not None
        return UnitUpdate(
            keep=keep,
            norm=joined(made.norm, change.norm, 0.0),
            penalty_step=joined(made.penalty_step, change.penalty_step, 0.0),
            prox=joined(made.prox, change.prox, 0.0),
            damping=change.damping,
        )

    def apply(self, update: UnitUpdate) -> None:
        if self._inner is not None:
            self._inner.apply(update)
        values = self._gates.values
        if isinstance(update.keep, float):
            values[self._place] = values[self._place] * update.keep if update.keep else 0.0
            return
        lr, x = self._gates.rate(), self._x()
        y = x - (1 - update.damping) * lr * self._slope()
        if update.penalty_step is not None:
            y = y - lr * update.penalty_step[self._unit].to(x) * x
        if update.prox is not None:
            y = y / (1 + lr * update.prox[self._unit].to(x))
        values[self._place] = (update.keep[self._unit].to(x) * y).to(values)

    def _made(self, rule: UpdateRule) -> UnitUpdate:
        if self._inner is not None:
            return self._inner.change(rule)
        return UnitUpdate(keep=torch.ones(self._num_units, dtype=torch.float64, device=self._device))

    def _x(self) -> Tensor:
        return self._gates.values[self._place].to(self._device, torch.float64)

    def _slope(self) -> Tensor:
        return self._gates.slopes(self._closure())[self._place].to(self._device)


def term_sums(x: Tensor, slope: Tensor, num_units: int, seed: int) -> UnitSums:
    """Of units of one weight each, ``x`` with the gradient ``slope``, [gates]."""
    number, nothing = torch.arange(len(x), device=x.device), torch.zeros_like(x)
    return UnitSums(
        num_units,
        number,
        torch.ones_like(x),
        seed,
        square=x.square(),
        absolute=x.abs(),
        product=x * slope,
        product_square=(x * slope).square(),
        product_absolute=(x * slope).abs(),
        gradient_absolute=slope.abs(),
        aligned=x * slope,
        direction_square=slope.square(),
        group=number,
        distance=nothing,
        exemplar=nothing,
        scale=nothing,
    )


def _iterates(x: Tensor, d: Tensor, lr: float | Tensor, reads: frozenset[str]) -> IterateSums:
    """The same around a step of gradient descent, y = x - lr d."""
    y = x - lr * d
    known = {
        "square": x.square(),
        "inner": y * x,
        "weighted": lr * x.square(),
        "aligned": x * d,
        "direction": d.square(),
        "moved": lr * d.square(),
        "ahead": y * d,
        "after": y.square().unsqueeze(0),
        "rates": torch.as_tensor(lr).to(x).reshape(1),
    }
    empty = torch.empty(0)
    return IterateSums(**{name: value if name in reads else empty for name, value in known.items()})
