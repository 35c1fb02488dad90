"""Units that leave the model while the training goes on: when that pays, and how methods go on counting all units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.compose import difference
from niwaki.core.dying import structure_units
from niwaki.core.edits.zeroed import zeroed_by_method
from niwaki.core.left_to_train import left_to_train
from niwaki.core.plan import Plan, smaller_shapes, tensor_shapes
from niwaki.core.reindex import reindex
from niwaki.core.scalars import is_number
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.per_unit.protocol import Measure, Units, UnitSubset
from niwaki.surgery.shrink import shrink


@dataclass(frozen=True, slots=True)
class ShrinkPolicy:
    """When units that have reached zero leave the model in place, so that the rest of the training is cheaper.

    Zeros are dragged along until their multiply-accumulates add up to ``cost`` steps of the network as it is; then the
    model is shrunk. Whoever waits so long pays, whatever is still to come, at most twice what a shrink at the best
    moment would have cost; and a run that is repeated or resumed shrinks on the same steps, which clocks could not
    promise. Where the model or the optimizer's state cannot follow, a warning says why, and the run goes on as it is.

    Args:
        cost: what a shrink costs, in training steps: copying the weights and the optimizer's state once, and for a
            compiled model the compilation.
        ema: averaged copies of the model, which shrink with it (see `niwaki.shrink`).

    Raises:
        MethodError: the cost is not a number above 0, or a copy is not a module.

    >>> ShrinkPolicy(cost=50)
    ShrinkPolicy(cost=50, ema=())
    """

    cost: float = 5.0
    ema: Sequence[nn.Module] = ()

    def __post_init__(self) -> None:
        if not is_number(self.cost) or not 0 < self.cost < float("inf"):
            raise MethodError(f"ShrinkPolicy(cost={self.cost!r}) must be a number of training steps above 0.")
        if not isinstance(self.ema, Sequence) or not all(isinstance(copy, nn.Module) for copy in self.ema):
            raise MethodError(
                f"ShrinkPolicy(ema={self.ema!r}) must be a list or tuple of modules, copies of the model."
            )

    @classmethod
    def of(cls, choice: object) -> ShrinkPolicy | None:
        """What a method is given: True for the defaults, False for never.

        Raises:
            MethodError: it is something else.
        """
        if isinstance(choice, cls):
            return choice
        if not isinstance(choice, bool):
            raise MethodError(
                f"shrink={choice!r} is not a choice: True, False, or niwaki.ShrinkPolicy(...) with its cost."
            )
        return cls() if choice else None


@final
class LiveSpace:
    """What of a search space is still in its model, and how long zeros have been dragged along."""

    def __init__(self, space: SearchSpace) -> None:
        self._dense = space
        self.space = space
        self.here: BoolArray = np.ones(space.num_units, dtype=bool)
        self.dims: dict[str, set[int]] = {}  # which dimensions of which tensors may get smaller
        for place in space.dims:
            self.dims.setdefault(place.tensor, set()).add(place.dim)
        self._past: list[BoolArray] = []  # what was here before each shrink
        self._idle = 0.0  # steps' worth of multiply-accumulates on zeros since the last shrink
        self._gone, self._share = 0, 0.0
        self._left = 0  # how many units had been asked to leave when it last shrank

    def pays(self, gone: BoolArray, policy: ShrinkPolicy) -> bool:
        """Count one more step with the units ``gone`` [num_units] at zero: does it pay to let them leave now?"""
        number = int(gone.sum())
        if number == self._left:
            return False
        if number != self._gone:
            now, then = (self._dense.cost_of(keep).macs for keep in (self.here, ~gone))
            self._gone, self._share = number, 1 - then / now if now else 0.0
        self._idle += self._share
        return self._idle >= policy.cost

    def leave(self, gone: BoolArray, optimizer: Optimizer | None, ema: Sequence[nn.Module] = ()) -> None:
        """Shrink the model to the units that are not ``gone``.

        Raises:
            PlanError: the model's sizes cannot follow, or `niwaki.reindex` cannot.
            ShrinkError: a state cannot follow.
        """
        plan = self._dense.plan(~gone)
        here = self._dense.keep_of(plan)  # without what is inside of structures that are erased
        erases = (~here)[list(structure_units(self._dense).values())].any()
        left = left_to_train(self._dense, plan) if erases else reindex(self._dense, plan, shrunk=False)
        shrink(self._dense.model, plan, optimizer, ema)
        self._past.append(self.here)
        self.space, self.here = left, here
        self._left, self._idle, self._gone, self._share = int(gone.sum()), 0.0, 0, 0.0

    def shapes(self, here: BoolArray) -> dict[str, tuple[int, ...]]:
        """The shapes of the tensors of the model with the units ``here`` [num_units], by name."""
        return {shape.name: shape.shape for shape in smaller_shapes(self._dense.plan(here))}

    def when(self, shapes: Mapping[str, tuple[int, ...]]) -> BoolArray | None:
        """Which units were there [num_units] when some tensors of the model had the ``shapes``; None if that is not
        known, or if the model was shrunk by something else since."""
        if {shape.name: shape.shape for shape in tensor_shapes(self._dense.model)} != self.shapes(self.here):
            return None
        return next((here for here in self._past if shapes.items() <= self.shapes(here).items()), None)

    def since(self, there: BoolArray) -> Plan:
        """What has been removed since the units ``there`` [num_units] were here, all of it at zero."""
        whole = self._dense.plan(self.here).with_edits(zeroed_by_method(self._dense, ~self.here))
        return difference(self._dense.plan(there), whole)

    def data(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"here": torch.from_numpy(self.here.copy()), "idle": self._idle}

    def check(self, data: Mapping[str, Any]) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` if ``data`` is not what `data` gives, and `MethodError` if the
        model has lost more than that."""
        here = data["here"]
        if not isinstance(here, Tensor) or here.shape != (self._dense.num_units,) or here.dtype != torch.bool:
            raise ValueError(f"what is left of the model is not {self._dense.num_units} truth values, one per unit")
        if not 0 <= float(data["idle"]) < float("inf"):
            raise ValueError("its count of idle steps is not a number")
        lost = here.cpu().numpy() & ~self.here
        if lost.any():
            raise MethodError(
                f"The model has been shrunk further than in the checkpoint, which has {int(lost.sum())} units more. "
                "What has left cannot come back: build model, optimizer and method anew, then load."
            )

    def erases(self, data: Mapping[str, Any]) -> bool:
        """Whether structures have left the model of a checkpoint that are still here."""
        whole = list(structure_units(self._dense).values())
        return bool((self.here & ~data["here"].cpu().numpy())[whole].any())

    def restore(
        self, data: Mapping[str, Any], ema: Sequence[nn.Module] = (), optimizer: Optimizer | None = None
    ) -> None:
        """Bring the model to the size of a checkpoint whose optimizer state is loaded already, or that of ``optimizer``
        with it."""
        gone = ~data["here"].cpu().numpy()
        if (gone & self.here).any():
            self.leave(gone, optimizer, ema)
        self._idle, self._gone, self._share = float(data["idle"]), 0, 0.0


@final
class LiveUnits(Units):
    """The units of a smaller space under their numbers in the dense one; those that have left score 0."""

    def __init__(self, inner: Units, here: BoolArray) -> None:
        self._inner, self._here = inner, here
        self._index = torch.from_numpy(np.flatnonzero(here)).to(inner.device)

    @property
    def device(self) -> torch.device:
        return self._inner.device

    @property
    def uses(self) -> Tensor:
        inner = self._inner.uses
        return inner.new_ones(len(self._here)).index_copy_(0, self._index, inner)

    def remember(self) -> None:
        self._inner.remember()

    def forget(self) -> None:
        self._inner.forget()

    def values(
        self, measures: Sequence[Measure], seed: int, size: Tensor | None = None, by_layer: Tensor | None = None
    ) -> Tensor:
        size, by_layer = (None if all is None else all[self._index] for all in (size, by_layer))
        values = self._inner.values(measures, seed, size, by_layer)
        return values.new_zeros(len(values), len(self._here)).index_copy_(1, self._index, values)

    def subset(self, units: BoolArray) -> UnitSubset:
        return self._inner.subset(units[self._here])
