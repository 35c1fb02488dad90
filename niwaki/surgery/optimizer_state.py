"""What optimizers remember of each parameter, and how it follows when the parameter gets smaller."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map

from niwaki.errors import ShrinkError
from niwaki.surgery.hidden_state import Related, check_hidden, nested_optimizers, tensors_inside

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


def register_state_layout(
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
            squares, 1 for copies of the weights, 0 for what does not depend on it. Needed only where an RMSNorm gets
            narrower, whose weights are rescaled then.

    Example:
        >>> import torch
        >>> from niwaki.surgery.optimizer_state import register_state_layout
        >>> class Factored(torch.optim.SGD):
        ...     '''Keeps row and column averages as vectors.'''
        >>> layout = {"rows": (-1,), "columns": (-2,)}
    >>> register_state_layout(Factored, lacking=layout, powers={"rows": -2, "columns": -2})
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
    (torch.optim.RMSprop, {"square_avg": -2, "grad_avg": -1, "momentum_buffer": 0}),
    (torch.optim.ASGD, {"ax": 1}),
    (torch.optim.Rprop, {"prev": -1, "step_size": 1}),
    (torch.optim.Adafactor, {"row_var": -2, "col_var": -2, "variance": -2}),
):
    register_state_layout(_known, powers=_powers)
if "Muon" in vars(torch.optim):  # since torch 2.9
    register_state_layout(torch.optim.Muon, powers={"momentum_buffer": -1})


class StateChange(Protocol):
    """What becomes of a parameter, as far as an optimizer's memory of it follows: `niwaki.core.edits.TensorChange`."""

    @property
    def tensor(self) -> str:
        """The name of the parameter."""

    @property
    def dims(self) -> frozenset[int]:
        """The dimensions of which not all positions stay."""

    def of_state(self, state: Tensor, dims: Mapping[int, int], power: Callable[[], int]) -> Tensor:
        """As `niwaki.core.edits.TensorEdit.of_state`."""


def smaller_state(optimizer: Optimizer, changes: Mapping[Tensor, StateChange]) -> list[Callable[[], None]]:
    """Compute the state that follows ``changes``; calling the results puts it in place, and cannot fail.

    Parameters that keep their shape keep their state; it is looked at nevertheless, since a state that spans several
    parameters hides there. The state of optimizers inside this one follows as well.

    Raises:
        ShrinkError: a state cannot be told to follow.
    """
    every = nested_optimizers(optimizer)
    parameters = [parameter for one in every for group in one.param_groups for parameter in group["params"]]
    related = Related(parameters, {parameter: change.dims for parameter, change in changes.items()})
    layouts = _layouts(every)
    actions: list[Callable[[], None]] = []
    followed: set[int] = set()
    for one in every:
        check_hidden(one, related)
        if id(one.state) in followed:  # optimizers inside a wrapper may share its state
            continue
        followed.add(id(one.state))
        states: MutableMapping[Any, Any] = one.state
        told = _told_by_shape(states)
        for parameter, state in states.items():
            if not isinstance(parameter, Tensor):
                continue
            change = changes.get(parameter)
            follow = _Follow(one, layouts.get(parameter, StateLayout()), parameter, change, told)
            whole = isinstance(state, MutableMapping)
            smaller = {key: follow(key, value) for key, value in (state if whole else {"": state}).items()}
            if change is not None:
                actions.append(_updating(state, smaller) if whole else _updating(states, {parameter: smaller[""]}))
    return actions


def _layouts(optimizers: Sequence[Optimizer]) -> dict[Tensor, StateLayout]:
    """What is declared of the optimizer that trains each parameter: of one inside a wrapper, if both hold it."""
    found: dict[Tensor, StateLayout] = {}
    for optimizer in optimizers:
        layout = next((_LAYOUTS[kind] for kind in type(optimizer).__mro__ if kind in _LAYOUTS), None)
        if layout is not None:
            found |= {parameter: layout for group in optimizer.param_groups for parameter in group["params"]}
    return found


def _told_by_shape(states: Mapping[Any, Any]) -> set[Any]:
    """The names of states that have the shape of some parameter in which no two dimensions are equally long, and so go
    with it dimension by dimension. Of a square matrix the shape does not tell: a preconditioner has it, too."""
    return {
        key
        for parameter, state in states.items()
        if isinstance(parameter, Tensor) and isinstance(state, Mapping) and len(set(parameter.shape)) == parameter.ndim
        for key, value in state.items()
        if {leaf.shape for leaf in tree_leaves(value) if isinstance(leaf, Tensor)} == {parameter.shape}
    }


def _updating(state: MutableMapping[Any, Any], smaller: dict[Any, Any]) -> Callable[[], None]:
    return lambda: state.update(smaller)


@dataclass(frozen=True, slots=True)
class _Follow:
    """How the state of one parameter follows its ``change`` (None: it keeps its shape)."""

    optimizer: Optimizer
    layout: StateLayout
    parameter: Tensor
    change: StateChange | None
    told: set[Any]

    def __call__(self, key: Any, value: Any) -> Any:
        """One state: a tensor, tensors in plain containers, or something else, which has no large ones inside."""
        return tree_map(lambda leaf: self._leaf(key, leaf), value)

    def _leaf(self, key: Any, value: Any) -> Any:
        if not isinstance(value, Tensor):
            if any(tensor.numel() > 1 for tensor in tensors_inside(value)):
                raise ShrinkError(
                    f"{self._keeps(key)} in a {type(value).__qualname__}, so niwaki cannot tell how it follows a "
                    "parameter that gets smaller. Cut at the end of training instead (niwaki.cut), or use another "
                    "optimizer."
                )
            return value
        if _wraps_others(value):
            raise ShrinkError(
                f"{self._keeps(key)} as a {type(value).__qualname__}, and only plain tensors can be made smaller. Cut "
                "at the end of training instead (niwaki.cut), or use another optimizer."
            )
        return self._tensor(key, value)

    def _keeps(self, key: Any) -> str:
        return f"{type(self.optimizer).__qualname__} keeps {key!r} of its state"

    def _tensor(self, key: Any, value: Tensor) -> Tensor:
        parameter, change = self.parameter, self.change
        dims = _dims(self.layout, parameter, key, value)
        name = "" if change is None else repr(change.tensor) + " "
        what = f"The state {key!r} of {type(self.optimizer).__qualname__} has the shape {list(value.shape)} where its "
        if dims is None:
            raise ShrinkError(
                f"{what}parameter {name}has {list(parameter.shape)}, so niwaki cannot tell how it follows when "
                "parameters get smaller. If it only lacks some dimensions, say which with "
                "niwaki.register_state_layout; otherwise cut at the end of training (niwaki.cut)."
            )
        if change is None:
            return value
        square = len(set(parameter.shape)) < parameter.ndim and value.numel() > 1
        if square and not (key in self.told or key in self.layout.lacking or key in self.layout.powers):
            raise ShrinkError(
                f"{what}parameter {name}has the same, with equally long dimensions, so niwaki cannot tell which is "
                f"which when it gets smaller. If they are in the same order, say so: niwaki.register_state_layout("
                f"{type(self.optimizer).__qualname__}, lacking={{{key!r}: ()}}); otherwise cut at the end of training "
                "(niwaki.cut)."
            )
        return change.of_state(value, dims, lambda: self._power(key, value, name))

    def _power(self, key: Any, value: Tensor, name: str) -> int:
        """With which power of the parameter's scale a state goes."""
        powers = self.layout.powers
        if key in powers or value.numel() == 1:  # a count of steps
            return powers.get(key, 0)
        raise ShrinkError(
            f"The parameter {name}is rescaled when it gets smaller, and it is not known how the state {key!r} of "
            f"{type(self.optimizer).__qualname__} goes with its scale. Say so: niwaki.register_state_layout("
            f"{type(self.optimizer).__qualname__}, powers={{{key!r}: -1}}) for an average of gradients, -2 for "
            "one of their squares, 1 for a copy of the weights, 0 for what does not depend on it."
        )


def _wraps_others(tensor: object) -> bool:
    return is_traceable_wrapper_subclass(tensor)


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
