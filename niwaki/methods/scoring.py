"""What a method scores units by: a weighted mix of criteria and of the user's functions, as means over steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.mix import One, Saliencies, check_layers, name_of, one_per_unit, weights_of
from niwaki.criteria.normalise import Compare, check_compare, normalise
from niwaki.criteria.registry import Criterion, in_training, named
from niwaki.criteria.terms import EFFECTS, terms_worth
from niwaki.errors import MethodError
from niwaki.methods.checks import diverged
from niwaki.per_unit.protocol import Units

Criteria = Mapping[One, float] | Mapping[str, float] | Saliencies


WEIGHTS: Mapping[str, float] = {
    "magnitude": 0.2,
    "average_magnitude": 0.2,
    "cosine": 0.2,
    "taylor1": 0.2,
    "taylor2": 0.2,
}


@dataclass(frozen=True, slots=True, eq=False)
class Mix:
    """The rows are the registered criteria and then the functions, each in the order it was given in; ``weights``
    [rows] are theirs. ``compare``: with which others each unit is compared."""

    registered: tuple[Criterion, ...]
    functions: tuple[Saliencies, ...]
    weights: FloatArray
    compare: Compare = "group"

    @classmethod
    def of(cls, criteria: Criteria, space: SearchSpace, compare: Compare = "group") -> Mix:
        """What the arguments ``criteria`` and ``compare`` of a method mean.

        Raises:
            MethodError: a weight makes no sense, two functions have one name, a criterion cannot be had in training, or
                units cannot be compared so.
            UnknownName: there is no criterion of that name.
        """
        given = weights_of({criteria: 1.0} if callable(criteria) else criteria, "criteria")
        registered = [one for one in given if isinstance(one, str)]
        functions = [one for one in given if not isinstance(one, str)]
        weights = np.array([given[one] for one in registered] + [given[one] for one in functions], dtype=np.float64)
        check_compare(compare)
        mix = cls(tuple(in_training(name, space) for name in registered), tuple(functions), weights, compare)
        if mix.by_layer:
            check_layers(mix.registered, functions)
        for name in mix.names:
            if mix.names.count(name) > 1:
                raise MethodError(
                    f"Two criteria are called {name!r}, so a checkpoint could not tell them apart. Give the functions "
                    "different names, with def."
                )
        return mix

    @property
    def names(self) -> list[str]:
        """Of each row."""
        return [criterion.name for criterion in self.registered] + [name_of(one) for one in self.functions]

    @property
    def by_layer(self) -> bool:
        """Whether every layer scores its part of a unit by itself."""
        return self.compare == "layer"

    def with_effects(self) -> Mix:
        """The same with rows for the criteria that say what terms without parameters are worth, of no weight where they
        are not in the mix; functions alone say it themselves."""
        more = [named(name) for name in EFFECTS if self.registered and name not in self.names]
        weights = np.insert(self.weights, len(self.registered), np.zeros(len(more)))
        return replace(self, registered=(*self.registered, *more), weights=weights)

    def settings(self) -> dict[str, Any]:
        """The weights by name, and how units are compared unless that is in their group."""
        weights = dict(zip(self.names, self.weights.tolist(), strict=True))
        return {"criteria": weights} | ({} if self.compare == "group" else {"compare": self.compare})

    @property
    def needs_direction(self) -> bool:
        """Whether `Units.remember` has to be called before a step that is scored."""
        return any(criterion.needs_direction for criterion in self.registered)

    def values(
        self,
        units: Units,
        seed: int,
        space: SearchSpace,
        here: BoolArray,
        size: Tensor | None = None,
        by_layer: Tensor | None = None,
    ) -> Tensor:
        """All rows after a step, [rows, len(here)]; see `Units.values`. ``space`` is that of the units ``here``."""
        measured = units.values(self.registered, seed, size, by_layer) if self.registered else None
        return self.with_functions(measured, space, here, units.device)

    def with_functions(
        self, measured: Tensor | None, space: SearchSpace, here: BoolArray, device: torch.device
    ) -> Tensor:
        """``measured`` [registered, len(here)] and the rows of the functions, 0 for units that are not ``here``."""
        rows = [] if measured is None else [measured]
        for function in self.functions:
            found = one_per_unit(space, function(space), name_of(function))
            found = found.to(device, torch.promote_types(torch.float32, found.dtype))
            row = found.new_zeros(len(here)).index_put_((torch.from_numpy(here).to(device),), found)
            rows.append(row.unsqueeze(0).to(measured if measured is not None else row))
        return torch.cat(rows)

    def weighted(
        self, means: Tensor, space: SearchSpace, keep: BoolArray, step: int, gated: BoolArray | None = None
    ) -> FloatArray:
        """The weighted sum of the rows of ``means``, each over its mean among the units of ``keep`` that units are
        compared with: [num_units], none negative. ``gated`` [num_units]: the terms without parameters, if any; see
        `with_effects`."""
        values = means.double().cpu().numpy()
        if not np.isfinite(values[:, keep]).all():
            raise diverged("scores", step)
        if gated is not None and self.registered:
            measured = terms_worth(space, values[: len(self.registered)], self.registered, gated, keep)
            values = np.concatenate([measured, values[len(self.registered) :]])
        rows = zip(self.weights, values, strict=True)
        parts = [weight * normalise(space, one, keep, self.compare) for weight, one in rows]
        return np.where(keep, np.sum(parts, axis=0), 0.0)

    def check_size(self, what: str) -> None:
        """Raise `MethodError` if there are functions, or criteria that are not made of sums over the weights of each
        unit: ``what`` asks for scores of weights other than they are."""
        odd = next((one.name for one in self.registered if not one.adds_up), None)
        if self.functions or odd is not None:
            whose = f"the criterion {odd!r}" if odd is not None else "a function of the search space "
            whose += "" if odd is not None else f"({name_of(self.functions[0])!r})"
            raise MethodError(
                f"{what} scores what has begun to fade as if it had not, which {whose} cannot be asked for. Use "
                "registered criteria of the sizes and gradients of single weights, or HESSO without readmit."
            )


class Window:
    """The sums of ``samples`` scores of all units, [criteria, num_units] each."""

    def __init__(self) -> None:
        self.samples = 0
        self._sums: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """One more sample."""
        self._sums = values.clone() if self._sums is None else self._sums.to(values).add_(values)
        self.samples += 1

    def close(self) -> Tensor:
        """The mean of the samples; the next window is empty."""
        assert self._sums is not None
        mean = self._sums / self.samples
        self._sums, self.samples = None, 0
        return mean

    def state(self) -> dict[str, Any]:
        """The sums, if there are any."""
        return {"samples": self.samples} | ({} if self._sums is None else {"window": self._sums.clone()})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.samples, sums = int(state["samples"]), state.get("window")
        self._sums = None if sums is None else sums.clone()

    @staticmethod
    def check_state(state: Mapping[str, Any], criteria: int, units: int) -> None:
        """Raise ValueError unless there are sums of this shape if and only if there are samples."""
        sums = state.get("window")
        if int(state["samples"]) < 0 or (sums is None) != (int(state["samples"]) == 0):
            raise ValueError("its window and its number of samples contradict one another")
        if sums is not None and tuple(sums.shape) != (criteria, units):
            raise ValueError(f"its window has not the shape {[criteria, units]}")
