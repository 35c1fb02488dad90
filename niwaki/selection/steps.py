"""The widths that groups may keep, for kernels and file formats that need multiples."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np

from niwaki.core.counts import IntArray
from niwaki.core.space import BoolArray, Group, SearchSpace
from niwaki.core.tensor_dims import Slice
from niwaki.errors import UnknownName


@dataclass(frozen=True, slots=True)
class Widths:
    """The widths a group may keep: a multiple of ``round_to`` entries of every weight that produces its units, and at
    least ``min_units`` units; or all of its units.

    ``round_to`` by pattern holds for the weights that the pattern names, see `multiples`.
    """

    round_to: int | Mapping[str, int] = 1
    min_units: int = 1

    def multiples(self, space: SearchSpace) -> IntArray:
        """For each group the number of units [groups] of which it keeps a multiple.

        A unit of K entries (an attention head of K rows) gives a weight multiples of r entries in steps of r / gcd(r,
        K) units. Norms and biases follow the weights before them; they count only in groups that no weight of two
        dimensions produces.

        >>> import niwaki, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
        >>> Widths(round_to={"0": 2}).multiples(niwaki.search_space(net, torch.randn(1, 4)))
        array([2])
        """
        least = np.ones(len(space.groups), dtype=np.int64)
        wanted = self._wanted()
        if not wanted:
            return least
        vectors = {shape.name for shape in space.shapes if sum(size > 1 for size in shape.shape) < 2}
        shared = _shared(space)
        for number, group in enumerate(space.groups):
            for pattern, step in wanted.items():
                named = list(_named(group, pattern))
                weights = [piece for piece in named if piece.tensor not in vectors]
                for piece in weights or named:
                    entries = 1 if number in shared.get((piece.tensor, piece.dim), ()) else piece.index.shape[1]
                    least[number] = math.lcm(int(least[number]), step // math.gcd(step, entries))
        return least

    def allowed(self, full: int, kept: IntArray, multiple: int) -> BoolArray:
        """Whether a group of ``full`` units that keeps multiples of ``multiple`` may keep ``kept``."""
        fits: BoolArray = ((kept % multiple == 0) & (kept >= max(1, self.min_units))) | (kept == full)
        return fits

    def check(self, space: SearchSpace) -> None:
        """Raise `UnknownName` if a pattern names nothing that ``space`` could make narrower. One number for all widths
        fits every space, one without units too."""
        for pattern in self._wanted() if isinstance(self.round_to, Mapping) else ():
            if not any(any(_named(group, pattern)) for group in space.groups):
                like = next((piece.tensor for g in space.groups for piece in g.slices if piece.role.produces), "")
                raise UnknownName(
                    f"The pattern {pattern!r} in `round_to` matches no group and no weight that produces units of this "
                    f"search space. Weights are named like {like!r}; use such a name, the name of a module, or a "
                    "pattern with *."
                )

    def _wanted(self) -> dict[str, int]:
        """The multiples by pattern, except multiples of 1."""
        by_pattern = self.round_to if isinstance(self.round_to, Mapping) else {"*": self.round_to}
        return {pattern: step for pattern, step in by_pattern.items() if step > 1}

    def __str__(self) -> str:
        if isinstance(self.round_to, Mapping):
            parts = [f"widths in multiples of {step} for {pattern}" for pattern, step in self._wanted().items()]
        else:
            parts = [f"widths in multiples of {self.round_to}"] * (self.round_to > 1)
        parts += [f"at least {self.min_units} units per group"] * (self.min_units > 1)
        return ", ".join(parts)


def _named(group: Group, pattern: str) -> Iterator[Slice]:
    """The parameters that produce the units of ``group``: all if the pattern names the group, else those it names."""
    everything = fnmatchcase(group.name, pattern)
    for piece in group.slices:
        if piece.role.produces and piece.parameter:
            if everything or fnmatchcase(piece.tensor, pattern) or fnmatchcase(piece.tensor, f"{pattern}.*"):
                yield piece


def _shared(space: SearchSpace) -> dict[tuple[str, int], set[int]]:
    """The groups that own positions of a dimension together with another unit (heads, and the positions in each): the
    number of entries of a unit there depends on the number of the others that are kept. One factor that is a multiple
    is enough."""
    starts = np.array([group.first for group in space.groups], np.int64)
    widths = sum(group.units for group in space.width_groups)
    found: dict[tuple[str, int], set[int]] = {}
    for place in space.dims:
        if place.units.shape[1] > 1:
            owned = place.units < widths  # not structures, which take all positions or none
            together = place.units[owned & (owned.sum(axis=1, keepdims=True) > 1)]
            groups = np.unique(np.searchsorted(starts, together, side="right") - 1)
            found.setdefault((place.tensor, place.dim), set()).update(groups.tolist())
    return found
