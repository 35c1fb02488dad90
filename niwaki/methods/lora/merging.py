"""What LoRA pairs ask of an update: their products are taken into the frozen weights before units change."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.lora.pairs import Pair, can_leave, driven_units, positions
from niwaki.methods.parts import Update
from niwaki.methods.schedule import Timeline
from niwaki.methods.trained_units import TrainedUnits


@final
class Merging(Update):
    """After each step of the optimizer, which moves A and B, the weights take over what the pairs hold of units that
    leave or have left, and where a period begins or ends all that they hold. Then ``inner`` changes the weights."""

    def __init__(self, units: TrainedUnits, pairs: Sequence[Pair], timeline: Timeline, inner: Update) -> None:
        self._units, self._pairs, self._timeline, self._inner = units, pairs, timeline, inner
        self._marks: BoolArray | None = None  # the marks that the folds were made for
        self._folds: list[tuple[Callable[[Tensor], None], Tensor]] = []

    def before(self, step: int, left: float | None) -> None:
        """Keep x of the units that leave in this period."""
        self._inner.before(step, left)

    def act(self, step: int, left: float | None) -> None:
        """Merge, then change."""
        if step in self._timeline.borders:
            for pair in self._pairs:
                pair.merge()
        if self._marks is not self._units.leaving:
            self._look_up()
        for fold, where in self._folds:
            fold(where)
        self._inner.act(step, left)

    def _look_up(self) -> None:
        units, self._folds = self._units, []
        concerned = units.leaving | units.zero
        for pair in self._pairs:
            for fold, dim in ((pair.fold_rows, pair.out), (pair.fold_columns, 1 - pair.out)):
                where = positions(driven_units(units.space, pair.names[0], dim), concerned, pair.weight)
                if where is not None:
                    self._folds.append((fold, where))
        self._marks = units.leaving

    def phase(self, step: int) -> str:
        """That of the inner update."""
        return self._inner.phase(step)

    def settings(self) -> dict[str, Any]:
        """Those of the inner update."""
        return self._inner.settings()

    def state(self) -> dict[str, Any]:
        """That of the inner update; W is in the model's parameters."""
        return self._inner.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self._inner.restore(state)

    def check_state(self, state: Mapping[str, Any]) -> None:
        """What the inner update asks for."""
        self._inner.check_state(state)


def check_pairs(label: str, merged: SearchSpace, pairs: Sequence[Pair], optimizer: Optimizer) -> None:
    """Raise `MethodError` unless some pair computes a unit that can leave, the pairs train, and the weights beside them
    do not."""
    if not can_leave(merged).any():
        raise MethodError(
            f"None of the {len(pairs)} LoRA layers, first {pairs[0].names[0]!r}, computes a unit that can leave, so "
            "there is nothing to prune. Add adapters to layers whose outputs are prunable; print(space) lists the "
            "groups, and why others are pinned."
        )
    trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for pair in pairs:
        weight, a, b = pair.names
        if pair.weight.requires_grad:
            raise MethodError(
                f"The weight {weight!r} has an adapter and trains as well, but {label} changes it beside the "
                "optimizer. Freeze it (requires_grad=False), as peft does."
            )
        for name, parameter in ((a, pair.a), (b, pair.b)):
            if not parameter.requires_grad or id(parameter) not in trained:
                why = "is frozen" if not parameter.requires_grad else "is not among the optimizer's parameters"
                raise MethodError(
                    f"{name!r} {why}, so the adapter of {weight!r} cannot train. Give the optimizer the A and B of "
                    "all LoRA layers of the model that the search space was built from."
                )
