"""Structures: connected sets of operators that can vanish from a network as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from niwaki.core.location import Location

if TYPE_CHECKING:
    from niwaki.core.edits.base import Edit


@dataclass(frozen=True, slots=True)
class Structure:
    """Operators whose results reach the rest of the network through operands of joins (additions, concatenations), and
    through nothing else.

    ``name``: the module that has all of them that are given parameters, and a number where it has several structures.
    ``location``: where the join is; ``join``: its number among the operators of the first run, ``operand``: which of
    those that it is given. ``operators``: how many vanish. ``macs`` [multiply-accumulates] and ``params`` [entries]:
    what vanishes with them, of the first example call; ``parameters``: those parameters, by name. ``producers``: those
    of them that make the result: at zero, it is zero. ``inside``: the number of the smallest structure around it, if
    any. ``refused``: why it cannot be erased; None if it can. ``others``: more joins that it is given to, and their
    operands. ``concatenated``: the first join is a concatenation. ``gates``: modules without parameters that make it,
    or a part of it, beside those parameters: gates on what these return make it zero. ``layer``: the layer that it is
    as a whole, if what that is given takes the place of what it returns: this is inexact, no zeros do that.
    ``router``: of an expert, what chooses it: there its number is the ``operand``, and the operator that makes its
    logit is the ``join``; ``macs`` are those of the logit, since other experts get its tokens.
    """

    name: str
    location: Location
    join: int
    operand: int
    operators: int
    macs: int
    params: int
    parameters: tuple[str, ...]
    producers: tuple[str, ...]
    inside: int | None
    refused: str | None
    others: tuple[tuple[int, int], ...] = ()
    concatenated: bool = False
    gates: tuple[str, ...] = ()
    layer: str | None = None
    router: str | None = None

    @property
    def operands(self) -> tuple[tuple[int, int], ...]:
        """All joins that it is given to, and at which position."""
        return ((self.join, self.operand), *self.others)

    @property
    def erasable(self) -> bool:
        """Whether it can vanish, by itself."""
        return self.refused is None

    @property
    def gated(self) -> bool:
        """Whether a gate makes it zero, alone or beside its producers."""
        if self.layer is not None or self.router is not None:
            return False
        return bool(self.gates) or not (self.producers or self.concatenated)

    @property
    def bare(self) -> bool:
        """Whether nothing but a gate makes it zero."""
        return self.gated and not self.producers

    def __str__(self) -> str:
        why = "" if self.refused is None else f"; not erasable: {self.refused}"
        how = "left out" if self.layer is not None else "concatenated" if self.concatenated else "added"
        how = how if self.router is None else f"chosen by {self.router}"
        where = f"{how} at {self.location.brief}{', inexact' * (self.layer is not None)}"
        return f"{self.name}: {self.macs:,} MACs, {self.params:,} parameters, {where}{why}"


def group_of(structure: str) -> str:
    """The name of the group of one unit that the structure of this name is."""
    return f"{structure} (whole)"


class ErasureTrial(ABC):
    """Structures that are erased one after the other, as long as that is valid."""

    __slots__ = ()

    @abstractmethod
    def erase(self, number: int) -> str | None:
        """Erase one more structure if that is valid; else say why not, and leave everything as it is."""


class Erasures(ABC):
    """The structures of one network: which of them can vanish together, and what a cut then does. Structures are given
    by their numbers in ``listed``."""

    __slots__ = ()

    @property
    @abstractmethod
    def listed(self) -> tuple[Structure, ...]:
        """All of them, those that cannot be erased, too."""

    @property
    @abstractmethod
    def gates_run(self) -> bool:
        """Whether a training runs gates on terms without parameters: those of modules, and not those of a program that
        stands for them."""

    @abstractmethod
    def trial(self) -> ErasureTrial:
        """A trial in which nothing is erased yet."""

    @abstractmethod
    def why_not(self, erased: Collection[int]) -> str | None:
        """Why these cannot be erased together, a sentence that names the first that is too many; None if they can. What
        it finds that no trial has looked for, later trials look for."""

    @abstractmethod
    def gone(self, erased: Collection[int]) -> frozenset[str]:
        """The tensors that nothing reads any more without these structures: their own, and those that served only
        them."""

    @abstractmethod
    def edits(self, erased: Collection[int]) -> tuple[Edit, ...]:
        """What a cut does to erase them; their producers have no entries left by then."""

    @abstractmethod
    def together(self, number: int) -> tuple[int, ...]:
        """The structures that are erased with one or not at all, itself among them."""

    @abstractmethod
    def blocks(self, worth: Mapping[int, float]) -> list[tuple[int, ...]]:
        """The structures ``worth`` something, by number, in blocks that are erased as a whole or not at all."""

    def around(self, number: int) -> tuple[int, ...]:
        """A structure and those around it, from inside out."""
        found = [number]
        while (outer := self.listed[found[-1]].inside) is not None:
            found.append(outer)
        return tuple(found)
