"""Record the decisions of a run that depend on data (positions found by value, numbers read by Python, masks), so that
a later run with other weights can repeat them and take the same path."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map_only

from niwaki.trace.operators import traits

Calculate = Callable[[torch._ops.OpOverload, Any, Any], Any]

_MASKS = (torch.bool, torch.uint8)
_WHOLE = (torch.int64, torch.int32, *_MASKS)


def looks(operator: torch._ops.OpOverload, args: Sequence[Any]) -> bool:
    """Whether the output shapes or the control flow of an operator depend on the values of its arguments."""
    known = traits(operator)
    return _masked(args) if known.indexes else known.decides


def _masked(args: Sequence[Any]) -> bool:
    """Whether an indexing call is given masks."""
    return any(index is not None and index.dtype in _MASKS for index in args[1])


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """A decision of an operator: the shapes of its arguments, its result (for an index: the masks among its
    arguments), and the path of the module whose code called it."""

    operator: torch._ops.OpOverload
    shapes: tuple[tuple[int, ...], ...]
    outcome: Any
    module: str


class Decisions:
    """Runs operators and notes their decisions. With ``given``, repeats those decisions as long as the same operators
    ask in the same order. ``module``: the path of the module whose code runs now."""

    def __init__(self, module: Callable[[], str], given: Sequence[Decision] = ()) -> None:
        self.made: list[Decision] = []
        self._module = module
        self._given = list(reversed(given))

    def run(
        self, calculate: Calculate, operator: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The result of ``operator``: computed, or the one in ``given``."""
        known = traits(operator)
        if known.indexes:
            return calculate(operator, (args[0], self._chosen(operator, args[1]), *args[2:]), kwargs)
        tagged = known.decides
        if not tagged and not known.foreign:
            return calculate(operator, args, kwargs)
        shapes = tuple(tuple(leaf.shape) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor))
        given = self._next(operator, shapes) if tagged else None
        if given is not None:
            return _copy(given.outcome)
        outcome = calculate(operator, args, kwargs)
        if not tagged:  # tags of another library may be missing: integer results count as found by value
            if not isinstance(outcome, torch.Tensor) or outcome.dtype not in _WHOLE:
                return outcome
            given = self._next(operator, shapes)
            if given is not None:
                return _copy(given.outcome)
        self.made.append(Decision(operator, shapes, _copy(outcome), self._module()))
        return outcome

    def _chosen(
        self, operator: torch._ops.OpOverload, indices: Sequence[torch.Tensor | None]
    ) -> Sequence[torch.Tensor | None]:
        """``indices``, with the masks among them replaced by the given ones."""
        masks = [index for index in indices if index is not None and index.dtype in _MASKS]
        if not masks:
            return indices
        shapes = tuple(tuple(mask.shape) for mask in masks)
        given = self._next(operator, shapes)
        if given is None:
            self.made.append(Decision(operator, shapes, _copy(masks), self._module()))
            return indices
        chosen = iter(given.outcome)
        return [next(chosen) if index is not None and index.dtype in _MASKS else index for index in indices]

    def _next(self, operator: torch._ops.OpOverload, shapes: tuple[tuple[int, ...], ...]) -> Decision | None:
        if not self._given:
            return None
        given = self._given.pop()
        if given.operator is operator and given.shapes == shapes:
            return given
        self._given.clear()  # another path: later decisions cannot be compared
        return None


def _copy(outcome: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), outcome)
