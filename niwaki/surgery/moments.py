"""What optimizers remember of each parameter, and how it follows when the parameter gets smaller."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from niwaki.core.repairs import Repair
from niwaki.errors import ShrinkError
from niwaki.surgery.cut import kept

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class StateLayout:
    """How the state of an optimizer relates to its parameters, by the name of the state.

    ``lacking``: the dimensions of the parameter that a factored state tensor does not have, counted from the end.
    ``powers``: with which power of the parameter's scale a state tensor goes, where a repair rescales the parameter: a
    gradient goes with -1, its square with -2.
    """

    lacking: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    powers: Mapping[str, int] = field(default_factory=dict)


_LAYOUTS: WeakKeyDictionary[type[Optimizer], StateLayout] = WeakKeyDictionary()


def declare_state(
    optimizer: type[Optimizer],
    *,
    lacking: Mapping[str, tuple[int, ...]] = _NOTHING,
    powers: Mapping[str, int] = _NOTHING,
) -> None:
    """Say how the state of an optimizer of your own, or of another library, follows a parameter that gets smaller.

    Not needed where every state tensor has the parameter's shape, or has one position instead of all in some of its
    dimensions, as the states of all ``torch.optim`` optimizers have.

    Args:
        optimizer: its class; subclasses follow, unless they are declared themselves.
        lacking: for factored states, the dimensions of the parameter that they do not have, counted from the end: the
            row averages of a matrix lack its last dimension, -1.
        powers: with which power of a parameter's scale a state goes: -1 for averages of gradients, -2 for those of
            squares. Needed only where an RMSNorm gets narrower, whose weights are rescaled then.

    Example:
        >>> import torch
        >>> from niwaki.surgery.moments import declare_state
        >>> class Factored(torch.optim.SGD):
        ...     '''Keeps row and column averages as vectors.'''
        >>> declare_state(Factored, lacking={"rows": (-1,), "columns": (-2,)}, powers={"rows": -2, "columns": -2})
    """
    _LAYOUTS[optimizer] = StateLayout(dict(lacking), dict(powers))


_FIRST, _SQUARE = {"exp_avg": -1}, {"exp_avg_sq": -2, "max_exp_avg_sq": -2}
for _known, _powers in (
    (torch.optim.SGD, {"momentum_buffer": -1}),
    (torch.optim.Adam, _FIRST | _SQUARE),
    (torch.optim.AdamW, _FIRST | _SQUARE),
    (torch.optim.NAdam, _FIRST | _SQUARE),
    (torch.optim.RAdam, _FIRST | _SQUARE),
    (torch.optim.Adamax, _FIRST | {"exp_inf": -1}),
    (torch.optim.Adagrad, {"sum": -2}),
    (torch.optim.Adadelta, {"square_avg": -2, "acc_delta": 2}),
    (torch.optim.RMSprop, {"square_avg": -2, "grad_avg": -1}),
    (torch.optim.Rprop, {"prev": -1, "step_size": 1}),
    (torch.optim.Adafactor, {"row_var": -2, "col_var": -2, "variance": -2}),
):
    declare_state(_known, powers=_powers)


@dataclass(frozen=True, slots=True)
class Change:
    """What happens to one parameter: the positions that stay by dimension, and how it is rescaled."""

    name: str
    positions: Mapping[int, Sequence[int]]
    repair: Repair | None = None

    @property
    def factor(self) -> float:
        return 1.0 if self.repair is None else self.repair.factor


def smaller_state(optimizer: Optimizer, changes: Mapping[Tensor, Change]) -> list[Callable[[], None]]:
    """Compute the state that follows ``changes``; calling the results puts it in place, and cannot fail.

    Parameters that keep their shape keep their state; it is looked at nevertheless, since a state that spans several
    parameters hides there.

    Raises:
        ShrinkError: a state cannot be told to follow.
    """
    layout = next((_LAYOUTS[kind] for kind in type(optimizer).__mro__ if kind in _LAYOUTS), StateLayout())
    actions: list[Callable[[], None]] = []
    for parameter, state in optimizer.state.items():
        change = changes.get(parameter)
        smaller = {
            key: _follow(optimizer, layout, parameter, change, key, value) for key, value in _tensors(state, optimizer)
        }
        if change is not None:
            actions.append(_updating(state, smaller))
    return actions


def _updating(state: dict[str, Any], smaller: dict[str, Any]) -> Callable[[], None]:
    return lambda: state.update(smaller)


def _tensors(state: Mapping[str, Any], optimizer: Optimizer) -> Iterator[tuple[str, Tensor]]:
    for key, value in state.items():
        if is_traceable_wrapper_subclass(value):
            raise ShrinkError(
                f"{type(optimizer).__qualname__} keeps {key!r} of its state as a {type(value).__qualname__}, and only "
                "plain tensors can be made smaller. Cut at the end of training instead (niwaki.cut), or use another "
                "optimizer."
            )
        if isinstance(value, Tensor):
            yield key, value
        elif any(isinstance(leaf, Tensor) for leaf in torch.utils._pytree.tree_leaves(value)):
            raise ShrinkError(
                f"{type(optimizer).__qualname__} keeps tensors inside the {type(value).__qualname__} {key!r} of its "
                "state, which may span several parameters, so niwaki cannot tell how they follow a parameter that gets "
                "smaller. Cut at the end of training instead (niwaki.cut), or use another optimizer."
            )


def _follow(
    optimizer: Optimizer,
    layout: StateLayout,
    parameter: Tensor,
    change: Change | None,
    key: str,
    value: Tensor,
) -> Tensor:
    """A state tensor after ``change``."""
    dims = _dims(layout, parameter, key, value)
    if dims is None:
        raise ShrinkError(
            f"The state {key!r} of {type(optimizer).__qualname__} has the shape {list(value.shape)} where its "
            f"parameter {'' if change is None else repr(change.name) + ' '}has {list(parameter.shape)}, so niwaki "
            "cannot tell how it follows when parameters get smaller. If it only lacks some dimensions, say which with "
            "niwaki.declare_state; otherwise cut at the end of training (niwaki.cut)."
        )
    if change is None:
        return value
    positions = {
        dims[dim]: stays for dim, stays in change.positions.items() if dim in dims and value.shape[dims[dim]] != 1
    }
    if positions:
        value = kept(value, positions)
    power = layout.powers.get(key, 0)
    return value * change.factor**power if power and change.factor != 1 else value


def _dims(layout: StateLayout, parameter: Tensor, key: str, value: Tensor) -> Mapping[int, int] | None:
    """Which dimension of a state tensor goes with which of the parameter; None where that is unknown."""
    every = range(parameter.ndim)
    if key in layout.lacking:
        lacking = {dim % parameter.ndim for dim in layout.lacking[key] if -parameter.ndim <= dim < 0}
        dims = [dim for dim in every if dim not in lacking]
        fits = [parameter.shape[dim] for dim in dims] == list(value.shape)
        return {dim: place for place, dim in enumerate(dims)} if fits else None
    if value.numel() == 1:  # a count of steps
        return {}
    if value.ndim == parameter.ndim and all(value.shape[dim] in (1, parameter.shape[dim]) for dim in every):
        return {dim: dim for dim in every}
    return None
