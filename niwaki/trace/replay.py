"""What data decide in a run: positions found by value, numbers read out, masks. A later run can be made to decide the
same, so that it takes the same path with other weights."""

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
    """Whether what an operator does, beyond the numbers in its result, depends on the content of its arguments."""
    known = traits(operator)
    return _masked(args) if known.indexes else known.decides


def _masked(args: Sequence[Any]) -> bool:
    """Whether an indexing call is given masks."""
    return any(index is not None and index.dtype in _MASKS for index in args[1])


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """An operator, the shapes it was given, and what came out (for an index: the masks among its arguments)."""

    operator: torch._ops.OpOverload
    shapes: tuple[tuple[int, ...], ...]
    outcome: Any


class Decisions:
    """Runs operators and notes what was decided; with ``given``, decides what was decided there, as long as the same
    questions are asked in the same order."""

    def __init__(self, given: Sequence[Decision] = ()) -> None:
        self.made: list[Decision] = []
        self._given = list(reversed(given))

    def run(
        self, calculate: Calculate, operator: torch._ops.OpOverload, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """The result of ``operator``, calculated or as given."""
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
        if not tagged:  # a library's own operator, whose tags say nothing: whole numbers are positions that it found
            if not isinstance(outcome, torch.Tensor) or outcome.dtype not in _WHOLE:
                return outcome
            given = self._next(operator, shapes)
            if given is not None:
                return _copy(given.outcome)
        self.made.append(Decision(operator, shapes, _copy(outcome)))
        return outcome

    def _chosen(
        self, operator: torch._ops.OpOverload, indices: Sequence[torch.Tensor | None]
    ) -> Sequence[torch.Tensor | None]:
        """``indices``, with the masks among them as given."""
        masks = [index for index in indices if index is not None and index.dtype in _MASKS]
        if not masks:
            return indices
        shapes = tuple(tuple(mask.shape) for mask in masks)
        given = self._next(operator, shapes)
        if given is None:
            self.made.append(Decision(operator, shapes, _copy(masks)))
            return indices
        chosen = iter(given.outcome)
        return [next(chosen) if index is not None and index.dtype in _MASKS else index for index in indices]

    def _next(self, operator: torch._ops.OpOverload, shapes: tuple[tuple[int, ...], ...]) -> Decision | None:
        if not self._given:
            return None
        given = self._given.pop()
        if given.operator is operator and given.shapes == shapes:
            return given
        self._given.clear()  # another path: nothing that follows can be compared
        return None


def _copy(outcome: Any) -> Any:
    return tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), outcome)
