"""The update of ATP: what adapters hold of masked units is shortened to zero; the frozen weights are left alone."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from niwaki.core.counts import BoolArray, IntArray
from niwaki.methods.lora.pairs import Pair, driven_units, positions
from niwaki.methods.parts import Stateless, Update
from niwaki.methods.schedule import Schedule
from niwaki.methods.trained_units import TrainedUnits


@final
class AdapterProx(Stateless, Update):
    """After each step each row of B of a masked output, and each column of A of a masked input, is brought nearer to
    zero by the proximal step of t ||y||: y <- y max(0, 1 - t / ||y||). t is ||y|| over the steps that are left, so that
    a row which nothing moves gets shorter by equal pieces and is zero at the end; and under a mask nothing moves it,
    since its gradient is zero. From then on it is kept there.

    ``entered``: whether the model has run under its mask since the last step. Where it has not, although there is one,
    a warning says so once.
    """

    def __init__(
        self, units: TrainedUnits, pairs: Sequence[Pair], schedule: Schedule, masks: Callable[[], BoolArray]
    ) -> None:
        self._units, self._pairs, self._schedule, self._masks = units, pairs, schedule, masks
        self._columns = [_reading(units, pair) for pair in pairs]
        self.entered, self._warned = False, False

    def before(self, step: int, left: float | None) -> None:
        """See whether the step's gradient is one under the mask."""
        if self.entered or self._warned or step > self._schedule.until or not self._masks().any():
            return
        self._warned = True
        warnings.warn(
            f"{self._units.label} takes step {step} from a gradient that was not computed under its mask, so that "
            "adapters do not learn to do without what is masked. Run the forward and the backward pass inside "
            "`with method.masked():`.",
            stacklevel=2,
        )

    def act(self, step: int, left: float | None) -> None:
        """Shorten, or keep at zero."""
        self.entered = False
        units, rest = self._units, max(0, self._schedule.until - step)
        concerned = units.leaving | units.zero
        if not concerned.any():
            return
        for pair, columns in zip(self._pairs, self._columns, strict=True):
            rows = positions(driven_units(units.space, pair.names[0], pair.out), concerned, pair.weight)
            read = None if columns is None else positions(columns, concerned, pair.weight)
            for weight, dim, where in ((pair.b, 0, rows), (pair.a, 1, read)):
                if where is not None:
                    _shorten_(weight, dim, where, rest)

    def phase(self, step: int) -> str:
        """One word."""
        return "projecting"


def _shorten_(weight: Tensor, dim: int, where: Tensor, rest: int) -> None:
    """The proximal step on the vectors ``where`` along ``dim``, with ``rest`` more steps to come."""
    y = weight.detach().index_select(dim, where)
    norm = torch.linalg.vector_norm(y, dim=1 - dim, keepdim=True)
    threshold = norm / (rest + 1)
    keep = (1 - threshold / norm.clamp(min=torch.finfo(norm.dtype).tiny)).clamp(min=0)
    weight.detach().index_copy_(dim, where, y * keep)


def _reading(units: TrainedUnits, pair: Pair) -> IntArray | None:
    """The units [n, K] of the positions of the dimension in which a weight reads, if it reads any."""
    name, dim = pair.names[0], 1 - pair.out
    return next((one.units for one in units.space.dims if one.tensor == name and one.dim == dim), None)
