"""Facts about an operator, read from its schema and tags once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

_DECIDING = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape})
INDEXING = frozenset(
    {
        torch.ops.aten.index.Tensor,
        torch.ops.aten._unsafe_index.Tensor,
        torch.ops.aten.index_put.default,
        torch.ops.aten.index_put_.default,
    }
)


@dataclass(frozen=True, slots=True)
class Traits:
    """Facts about an operator. ``inquires``: it asks for a property of a tensor. ``viewing``: a result shares the
    memory of an argument. ``writes``: position and name of the arguments that are written to. ``indexes``: tensors
    among its arguments are indices. ``decides``: by its tags, output shapes or control flow depend on values of its
    arguments. ``foreign``: another library defines it, and its tags may be missing."""

    inquires: bool
    viewing: bool
    writes: tuple[tuple[int, str], ...]
    indexes: bool
    decides: bool
    foreign: bool

    def written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[torch.Tensor]:
        """The tensors among the arguments of a call that it writes to."""
        for position, name in self.writes:
            given = args[position] if position < len(args) else kwargs.get(name)
            yield from (leaf for leaf in tree_leaves(given) if isinstance(leaf, torch.Tensor))


@cache
def argument_of(operator: torch._ops.OpOverload, name: str) -> tuple[int, Any]:
    """The position of an argument in the operator's schema, and its default, if any.

    Raises:
        KeyError: the operator has no such argument.
    """
    for position, argument in enumerate(operator._schema.arguments):
        if argument.name == name:
            return position, argument.default_value
    raise KeyError(f"{operator} has no argument {name!r}.")


@cache
def traits(operator: torch._ops.OpOverload) -> Traits:
    """The traits of an operator."""
    schema = operator._schema
    return Traits(
        operator.namespace == "prim",
        any(result.alias_info is not None for result in schema.returns),
        tuple(
            (position, argument.name)
            for position, argument in enumerate(schema.arguments)
            if argument.alias_info is not None and argument.alias_info.is_write
        ),
        operator in INDEXING,
        not _DECIDING.isdisjoint(operator.tags),
        operator.namespace != "aten",
    )
