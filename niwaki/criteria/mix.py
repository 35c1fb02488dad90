"""What units are scored by: names of criteria and functions of the user's, each with a weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.scalars import is_number
from niwaki.core.space import SearchSpace
from niwaki.criteria.registry import Criterion
from niwaki.errors import MethodError

Saliencies = Callable[[SearchSpace], ArrayLike]
One = str | Saliencies


def name_of(one: One) -> str:
    """What a criterion is called in reports and files: a registered name, or that of the function."""
    return one if isinstance(one, str) else getattr(one, "__name__", None) or type(one).__qualname__


def check_one(one: object) -> None:
    """Raise `MethodError` unless ``one`` is a name or a function."""
    if isinstance(one, type):
        raise MethodError(
            f"{one.__name__} is a class and no criterion: pass an instance of it, such as niwaki.Surgeon(batches, "
            "loss_fn)."
        )
    if not isinstance(one, str) and not callable(one):
        raise MethodError(
            f"{one!r} is not a criterion: pass the name of one, such as 'magnitude', a function of the search space "
            "that returns a number for each unit, or a dictionary of these and their weights."
        )


def weights_of(mix: object, what: str) -> dict[One, float]:
    """The weights of a mix: finite, none negative, not all zero, for only then does the weighted sum rank units.

    Raises:
        MethodError: ``what``, as the mix is called, is no such mapping.
    """
    example = "name criteria and their weights, such as {'magnitude': 1.0}"
    if not isinstance(mix, Mapping):
        raise MethodError(f"{mix!r} is not a mapping: {example}.")
    if not mix:
        raise MethodError(f"{what} is empty: {example}.")
    for one, weight in mix.items():
        check_one(one)
        if not is_number(weight) or not math.isfinite(weight) or weight < 0:
            raise MethodError(
                f"{what} has the weight {weight!r} for {name_of(one)!r}: it must be a finite number, 0 or more."
            )
    if not any(mix.values()):
        raise MethodError(f"{what} has the weight 0 only, so all units would score alike: give one a weight above 0.")
    return {one: float(weight) for one, weight in mix.items()}


def check_layers(criteria: Sequence[Criterion], functions: Collection[Saliencies] = ()) -> None:
    """Raise `MethodError` unless each layer can score its part of a unit by itself."""
    instead = "compare='group', 'isomorphic' or 'space'"
    if functions:
        raise MethodError(f"A function scores units as a whole, not layer by layer: {instead}.")
    for criterion in criteria:
        if not criterion.adds_up:
            raise MethodError(
                f"The criterion {criterion.name!r} scores units as a whole, so it cannot score them layer by layer: "
                f"{instead}."
            )


def one_per_unit(space: SearchSpace, values: Tensor | ArrayLike, name: str) -> Tensor:
    """What the criterion ``name`` returned, as [num_units] numbers where they are.

    Raises:
        MethodError: it is something else. Whether the numbers are finite is not asked.
    """
    try:
        found = values if isinstance(values, Tensor) else torch.from_numpy(np.array(values, dtype=np.float64))
    except (TypeError, ValueError) as cause:
        raise MethodError(
            f"The criterion {name!r} returned something that is not an array of numbers: {cause}."
        ) from cause
    if found.shape != (space.num_units,):
        raise MethodError(
            f"The criterion {name!r} must return one number per unit, an array of shape [{space.num_units}], but "
            f"returned the shape {list(found.shape)}."
        )
    return found.detach()


def finite(space: SearchSpace, values: Tensor | ArrayLike, name: str) -> FloatArray:
    """The same as finite float64 numbers, or an error that says what is wrong with them."""
    array = np.array(one_per_unit(space, values, name).cpu().double().numpy())
    if not np.isfinite(array).all():
        unit = int(np.flatnonzero(~np.isfinite(array))[0])
        group = next(group for group in space.groups if group.first <= unit < group.first + group.units)
        raise MethodError(
            f"The criterion {name!r} is {array[unit]} for unit {unit - group.first} of the group {group.name!r}. "
            "Scores must be finite: look for non-finite weights or gradients."
        )
    return array
