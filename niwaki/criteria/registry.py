"""The definition of a criterion, and the table of all criteria by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError, UnknownName, nearest
from niwaki.per_unit.peers import scale_dims
from niwaki.per_unit.sums import (
    ABSENCE,
    ACTIVATION_SUMS,
    CURVATURE_SUMS,
    DIRECTION_SUMS,
    GRADIENT_SUMS,
    PEER_SUMS,
    ROW_SUMS,
    UnitSums,
)

Saliency = Callable[[UnitSums], Tensor]


@dataclass(frozen=True, slots=True)
class Criterion:
    """A saliency per unit; larger for units that the network needs more.

    ``saliency`` maps sums over units to values [num_units], none negative. ``reads`` names the sums it uses; they
    determine the data it needs: gradients, or the direction in which the optimizer moves.
    """

    name: str
    reads: tuple[str, ...]
    saliency: Saliency

    @property
    def needs_gradients(self) -> bool:
        """Whether it is defined by the gradient of the loss."""
        return not GRADIENT_SUMS.isdisjoint(self.reads)

    @property
    def needs_direction(self) -> bool:
        """Whether it is defined by the direction of descent: the optimizer's, or the gradient without an optimizer."""
        return not DIRECTION_SUMS.isdisjoint(self.reads)

    @property
    def needs_activations(self) -> bool:
        """Whether it is defined by the activations of the units."""
        return not ACTIVATION_SUMS.isdisjoint(self.reads)

    @property
    def needs_curvature(self) -> bool:
        """Whether it is defined by the second derivative of the loss."""
        return not CURVATURE_SUMS.isdisjoint(self.reads)

    @property
    def needs_absence(self) -> bool:
        """Whether it is defined by what the network does without a structure, or with other weights in it."""
        return not ABSENCE.isdisjoint(self.reads)

    @property
    def knows_terms(self) -> bool:
        """Whether it says what a term without parameters is worth, by its gate or by leaving it out."""
        return self.reads_gates or "changed" in self.reads

    @property
    def reads_gates(self) -> bool:
        """Whether a gate, a number that a term is multiplied by, is a weight like others to it."""
        return self.needs_gradients and not (self.needs_curvature or self.needs_activations)

    @property
    def needs_data(self) -> bool:
        """Whether it cannot be computed from the weights alone."""
        of_loss = self.needs_gradients or self.needs_direction or self.needs_curvature
        return of_loss or self.needs_activations or self.needs_absence

    @property
    def needs_peers(self) -> bool:
        """Whether it compares a unit with the others of its group: a structure, which is alone in its own, has none."""
        return not PEER_SUMS.isdisjoint(self.reads)

    @property
    def adds_up(self) -> bool:
        """Whether it can be asked of a part of a unit, since it is made of sums over weights alone."""
        return set(self.reads) <= ROW_SUMS | {"group", "entries", "number", "num_units", "seed"}


_REGISTRY: dict[str, Criterion] = {}


def criterion(name: str, *, reads: tuple[str, ...] = ()) -> Callable[[Saliency], Criterion]:
    """Register the decorated saliency function under ``name``."""

    def register(saliency: Saliency) -> Criterion:
        if name in _REGISTRY:
            raise MethodError(f"There is already a criterion {name!r}. Give the new one another name.")
        unknown = sorted(set(reads) - set(UnitSums.__dataclass_fields__))
        if unknown:
            raise MethodError(f"The criterion {name!r} reads a sum {unknown[0]!r}, which UnitSums does not have.")
        _REGISTRY[name] = Criterion(name, reads, saliency)
        return _REGISTRY[name]

    return register


def criteria() -> dict[str, Criterion]:
    """All registered criteria by name."""
    return dict(_REGISTRY)


def named(name: str) -> Criterion:
    """The criterion called ``name``.

    Raises:
        UnknownName: no criterion has that name; the message lists all names.
    """
    if name not in _REGISTRY:
        raise UnknownName(
            f"There is no criterion {name!r}.{nearest(name, _REGISTRY)} Registered are: "
            f"{', '.join(sorted(_REGISTRY))}. "
            "Pass one of these names, or a function of the search space."
        )
    return _REGISTRY[name]


def in_training(name: str, space: SearchSpace) -> Criterion:
    """The criterion called ``name``, for a method that scores ``space`` during the training.

    Raises:
        UnknownName: there is none.
        MethodError: it needs more than weights, gradients and steps, or is not defined for the space.
    """
    found = named(name)
    if found.needs_activations or found.needs_curvature or found.needs_absence:
        what = "activations" if found.needs_activations else "second derivatives"
        what = "runs without each structure" if found.needs_absence else what
        raise MethodError(
            f"The criterion {name!r} needs {what}, which an optimizer step does not show to a method. Choose criteria "
            "of weights and gradients for the training, or score a trained network with niwaki.score."
        )
    if "scale" in found.reads:
        scale_dims(space)
    return found


def check_of_channels(criteria: Sequence[Criterion]) -> None:
    """Raise `MethodError` if one of ``criteria`` says nothing of the channels that a branch adds to a union stream."""
    for one in criteria:
        if one.needs_activations or one.needs_absence or one.needs_peers:
            raise MethodError(
                f"The criterion {one.name!r} does not tell what each branch writes to a union stream from what others "
                "write. Score by the weights that make a channel: 'magnitude', 'taylor1', 'relative_hessian_trace'."
            )
