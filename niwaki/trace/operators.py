"""What the schema of an operator says, looked up once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class Traits:
    """``viewing``: a result shares the memory of an argument. ``writes``: position and name of the arguments that are
    written to."""

    viewing: bool
    writes: tuple[tuple[int, str], ...]

    def written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
        """The tensors among the arguments of a call that it writes to."""
        for position, name in self.writes:
            given = args[position] if position < len(args) else kwargs.get(name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))


@cache
def traits(operator: torch._ops.OpOverload) -> Traits:
    """The traits of an operator."""
    schema = operator._schema
    return Traits(
        any(result.alias_info is not None for result in schema.returns),
        tuple(
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
    )
