"""What a budget removes: units, which makes layers narrower, whole structures, or both."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import final

import numpy as np

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Compare
from niwaki.errors import BudgetError, MethodError, UnknownName
from niwaki.selection.both import erase_and_narrow
from niwaki.selection.branching import least_lost
from niwaki.selection.greedy import widths
from niwaki.selection.levels import leaving
from niwaki.selection.request import SelectionRequest
from niwaki.selection.steps import Widths
from niwaki.selection.structures import chosen_with_care, erasable, valid_erasures, with_what_goes_along


class Removal(ABC):
    """What can leave, and in which order it does. Masks are [num_units]."""

    name: str

    @abstractmethod
    def compared(self, compare: Compare | None) -> Compare:
        """With which others each candidate is compared, if the user says ``compare``.

        Raises:
            MethodError: they cannot be compared so.
        """

    @abstractmethod
    def candidates(self, space: SearchSpace) -> BoolArray:
        """The units of ``space`` that can leave at all."""

    @abstractmethod
    def select(self, space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
        """The units to keep so that every limit of the ``request`` is met, as far as that is possible."""

    @abstractmethod
    def leaving(self, space: SearchSpace, gone: BoolArray, steps: Widths) -> BoolArray:
        """The units of ``gone`` that a plan can remove."""


@final
class NarrowerLayers(Removal):
    """Units of width: at least one of every group stays."""

    name = "units"

    def compared(self, compare: Compare | None) -> Compare:
        return "group" if compare is None else compare

    def candidates(self, space: SearchSpace) -> BoolArray:
        found = np.ones(space.num_units, dtype=bool)
        found[sum(group.units for group in space.width_groups) :] = False
        return found

    def select(self, space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
        return widths(space, saliency, request)

    def leaving(self, space: SearchSpace, gone: BoolArray, steps: Widths) -> BoolArray:
        return leaving(space, gone & self.candidates(space), steps)


@final
class WholeStructures(Removal):
    """Structures that weights make, as long as outputs follow from inputs. They are compared in the whole space."""

    name = "structures"

    def compared(self, compare: Compare | None) -> Compare:
        if compare not in (None, "space"):
            raise MethodError(
                f"compare={compare!r} is for units. A structure is alone in its group: structures are compared in the "
                "whole space."
            )
        return "space"

    def candidates(self, space: SearchSpace) -> BoolArray:
        found = np.zeros(space.num_units, dtype=bool)
        found[list(erasable(space).values())] = True
        return found

    def select(self, space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
        keep = chosen_with_care(space, lambda: least_lost(space, saliency, request))
        return keep if "units" in request.limits else with_what_goes_along(space, keep, request.removed)

    def leaving(self, space: SearchSpace, gone: BoolArray, steps: Widths) -> BoolArray:
        return ~chosen_with_care(space, lambda: ~valid_erasures(space, gone))


@final
class Both(Removal):
    """Units and structures, under one budget."""

    name = "both"

    def compared(self, compare: Compare | None) -> Compare:
        return "group" if compare is None else compare

    def candidates(self, space: SearchSpace) -> BoolArray:
        return UNITS.candidates(space) | STRUCTURES.candidates(space)

    def select(self, space: SearchSpace, saliency: FloatArray, request: SelectionRequest) -> BoolArray:
        if "units" in request.limits:
            raise BudgetError(
                "A number of units cannot be shared out between units and whole structures. Set a limit in macs, "
                "params or memory for remove='both'."
            )
        keep = chosen_with_care(space, lambda: erase_and_narrow(space, saliency, request))
        return with_what_goes_along(space, keep, request.removed)

    def leaving(self, space: SearchSpace, gone: BoolArray, steps: Widths) -> BoolArray:
        return UNITS.leaving(space, gone, steps) | STRUCTURES.leaving(space, gone, steps)


UNITS, STRUCTURES, BOTH = NarrowerLayers(), WholeStructures(), Both()


def removal_named(name: object) -> Removal:
    """What is meant by the argument ``remove`` of `niwaki.choose` and of methods.

    Raises:
        UnknownName: nothing is.
    """
    for known in (UNITS, STRUCTURES, BOTH):
        if name == known.name:
            return known
    raise UnknownName(f"remove={name!r} is not what can be removed: choose 'units', 'structures' or 'both'.")
