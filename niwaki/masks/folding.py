"""Scales that were learnt go into the weights, and the optimizer's memory of these weights follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from niwaki.core.edits import ScaledBefore
from niwaki.core.names import named_parameters
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError, ShrinkError
from niwaki.per_unit.unit_gates import UnitGates
from niwaki.surgery.optimizer_state import StateChange, smaller_state
from niwaki.surgery.shrink import averaged_copies
from niwaki.surgery.unscaled import total

_NOTHING: Final[frozenset[int]] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class Scaled:
    """The ``factors`` [size] by dimension that a parameter called ``tensor`` is multiplied by."""

    tensor: str
    factors: Mapping[int, Tensor]

    @property
    def dims(self) -> frozenset[int]:
        """The dimensions of which not all positions stay: none."""
        return _NOTHING

    def of(self, weight: Tensor) -> Tensor:
        """The product, a new tensor."""
        for dim, factor in self.factors.items():
            weight = weight * _along(factor, weight, dim)
        return weight

    def of_state(self, state: Tensor, dims: Mapping[int, int], power: Callable[[], int]) -> Tensor:
        """What an optimizer remembers of the product, from what it remembers of the weight.

        Raises:
            ShrinkError: the state has one number for positions with several factors.
        """
        exponent = power()
        for dim, factor in self.factors.items() if exponent else ():
            place = dims.get(dim)
            if place is None or state.shape[place] != len(factor):
                raise ShrinkError(
                    f"The optimizer keeps averages over dimension {dim} of {self.tensor!r}, whose positions are scaled "
                    "by different factors, so that they cannot follow. Fold without the optimizer and begin a new one, "
                    "or use one that keeps a number for each weight (SGD, Adam)."
                )
            state = state * _along(factor, state, place) ** exponent
        return state


def fold_gates_(
    space: SearchSpace,
    gates: UnitGates,
    values: Tensor,
    optimizer: Optimizer | None = None,
    ema: Iterable[nn.Module] = (),
) -> None:
    """Multiply the weights by what the gates of units multiply them by, for good: the model computes then what it did
    under the gates ``values`` [num_units], all of them above 0.

    What ``optimizer`` remembers follows: an average of gradients by a weight times f is 1/f of what it was. So do the
    weights of averaged copies of the model, ``ema``.

    Raises:
        MethodError: a value is not a number above 0, or the model has been cut since. Nothing has changed then.
        PlanError: a copy has other tensors than the model. Nothing has changed then.
        ShrinkError: a state of the optimizer cannot follow. Nothing has changed then.
    """
    if not bool((values > 0).all()) or not bool(values.isfinite().all()):
        raise MethodError(
            "A unit is scaled by what is not a number above 0, which no memory of an optimizer can follow."
        )
    parameters, found = dict(named_parameters(space.model)), _factors(gates, values)
    for name, factors in found.items():
        here = parameters[name].shape if name in parameters else ()
        if any(dim >= len(here) or here[dim] != len(factor) for dim, factor in factors.items()):
            raise MethodError(
                f"{name!r} has the shape {list(here)} now, and scales were learnt for other sizes: the model has been "
                "cut since. Fold them before the cut: niwaki.cut(masks.fold_(), plan)."
            )
    changes: dict[Tensor, StateChange] = {parameters[name]: Scaled(name, factors) for name, factors in found.items()}
    actions = [] if optimizer is None else smaller_state(optimizer, changes)
    copies = averaged_copies(space.model, ema)
    with torch.no_grad():
        for own in (parameters, *(dict(named_parameters(copy)) for copy in copies)):
            for name, factors in found.items():
                own[name].copy_(Scaled(name, factors).of(own[name]))
    for action in actions:
        action()


@torch.no_grad()
def scaled_before(space: SearchSpace, gates: UnitGates, values: Tensor) -> tuple[ScaledBefore, ...]:
    """What a plan says of the weights that ``values`` are to be folded into: of the one whose sum they change most;
    nothing if they change none."""
    parameters, sums = dict(named_parameters(space.model)), []
    for name, factors in _factors(gates, values).items():
        weight = parameters[name]
        sums.append(ScaledBefore(name, total(weight), total(Scaled(name, factors).of(weight))))
    changed = [one for one in sums if one.unscaled > 0 and one.scaled != one.unscaled]
    return tuple(sorted(changed, key=lambda one: -abs(one.scaled / one.unscaled - 1))[:1])


def _factors(gates: UnitGates, values: Tensor) -> dict[str, dict[int, Tensor]]:
    """What each weight is multiplied by, by dimension; only those that change."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, dim, factor in gates.factors(values):
        if not bool((factor == 1).all()):
            own = found.setdefault(name, {})
            own[dim] = own[dim] * factor if dim in own else factor
    return found


def _along(factor: Tensor, weight: Tensor, dim: int) -> Tensor:
    shape = [1] * weight.dim()
    shape[dim] = -1
    return factor.to(weight).view(shape)
