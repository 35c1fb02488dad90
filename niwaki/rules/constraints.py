"""Collect what the rules say about a graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

import numpy as np
from torch._ops import OpOverload

from niwaki.core.counts import IntArray
from niwaki.core.describe import counted, first_of, spans
from niwaki.core.location import Location
from niwaki.core.numbers import Equation
from niwaki.core.repairs import Scalar
from niwaki.core.space import BoolArray
from niwaki.rules.axis import Axis
from niwaki.rules.label import Label, Scale
from niwaki.trace.graph import Node


@dataclass(frozen=True, slots=True)
class Reason:
    """Why something is pinned, and where in the user's source."""

    text: str
    location: Location | None


@dataclass(frozen=True, slots=True, eq=False)
class MacsTerm:
    """``times`` multiply-accumulates per combination of positions, by node number ``node`` of the first run."""

    times: int
    axes: tuple[Axis, ...]
    node: int


@dataclass(frozen=True, slots=True, eq=False)
class RepairClaim:
    """A parameter (by its value number) or a float attribute that a cut has to multiply by ``scale``; ``shift`` is
    added to each entry of the parameter before that."""

    target: int | Scalar
    shift: float
    scale: tuple[Scale, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Touched:
    """A node with all axes of its tensors.

    ``resized``: the whole numbers among its arguments that a cut may change. ``rescaled``: the float arguments that a
    cut changes, which are attributes that it repairs, and numbers that Python computes from sizes. ``aside``: Python
    did not ask for the result, and nothing uses it (such as the head positions that flexible attention passes to a
    function of scores that ignores them).
    """

    node: Node
    axes: list[Axis]
    resized: set[int]
    rescaled: dict[float, Scalar | tuple[Scale, ...]]
    aside: bool


class Mark(Enum):
    """What rules say about positions of weights: an operator reads along them; a method has to zero them; they produce
    what the network passes on; they are the direction of a weight norm, which keeps its values while its units are
    zeroed."""

    CONSUMED = auto()
    ZEROED_BY_METHOD = auto()
    PRODUCED = auto()
    DIRECTION = auto()


@dataclass(slots=True, eq=False)
class Constraints:
    """Everything the rules said about a graph."""

    labels: list[Label | None]
    reasons: list[Reason] = field(default_factory=list)
    equal: list[tuple[IntArray, IntArray, int]] = field(default_factory=list)  # rows, rows, reason
    pinned: list[tuple[IntArray, int]] = field(default_factory=list)  # ids, reason
    inexact: list[tuple[IntArray, int]] = field(default_factory=list)  # ids, reason
    allow_inexact: bool = False
    sizes: list[Equation[Axis]] = field(default_factory=list)
    repairs: list[RepairClaim] = field(default_factory=list)
    macs: list[MacsTerm] = field(default_factory=list)
    marks: dict[Mark, list[IntArray]] = field(default_factory=lambda: {mark: [] for mark in Mark})  # ids
    directed_by: dict[int, set[tuple[OpOverload, int]]] = field(default_factory=dict)  # weight norms of parameters
    ids_of: dict[tuple[int, int], tuple[int, int]] = field(default_factory=dict)  # (value, dim) -> first id, size
    aliases: dict[int, list[int]] = field(default_factory=dict)  # root value -> values that share its memory
    inferred: set[int] = field(default_factory=set)  # unreached parameters that have reached siblings
    understood: set[tuple[int, int]] = field(default_factory=set)  # (value, dim) that siblings explain
    notes: dict[str, None] = field(default_factory=dict)  # what rules tell the user, in their order
    touched: list[Touched] = field(default_factory=list)
    blocks: list[IntArray] = field(default_factory=list)  # ids that were handed out together, in ascending order
    absent: dict[int, int] = field(
        default_factory=dict
    )  # structures -> the id that their parts of joins have in common
    ids: int = 1

    def __str__(self) -> str:
        return describe_constraints(self)

    def allocate(self, size: int) -> IntArray:
        """Hand out ``size`` new ids [size, 1]."""
        block = np.arange(self.ids, self.ids + size, dtype=np.int64)
        self.blocks.append(block)
        self.ids += size
        return block[:, None]

    def absence(self, structure: int) -> int:
        """The id of a structure: a position that has it goes with the structure, and may depend on units as well."""
        if structure not in self.absent:
            self.absent[structure] = int(self.allocate(1)[0, 0])
        return self.absent[structure]

    def reason(self, text: str, location: Location | None) -> int:
        """Number a reason."""
        self.reasons.append(Reason(text, location))
        return len(self.reasons) - 1

    def marked(self) -> dict[Mark, BoolArray]:
        """Whether each id has a mark, [ids] per mark."""
        found = {}
        for mark, arrays in self.marks.items():
            found[mark] = np.zeros(self.ids, dtype=bool)
            # Many of the arrays are views of one block, which is marked once.
            for ids in {id(ids.base if ids.base is not None else ids): ids for ids in arrays}.values():
                found[mark][ids] = True
        return found

    def mark_inexact(self, ids: IntArray, why: int) -> None:
        """Mark positions whose removal changes the result: pinned, unless the user allows inexact groups."""
        (self.inexact if self.allow_inexact else self.pinned).append((ids, why))


def describe_constraints(constraints: Constraints) -> str:
    """Which rows of ids are equal, which ids are pinned and why, which numbers must equal which sizes."""
    equal = [f"  {Axis(left)} = {Axis(right)}{_at(constraints, why)}" for left, right, why in constraints.equal]
    pinned = [
        f"  {spans(ids.reshape(-1))}: {constraints.reasons[why].text}{_at(constraints, why)}"
        for ids, why in constraints.pinned
    ]
    inexact = [
        f"  {spans(ids.reshape(-1))}: {constraints.reasons[why].text}{_at(constraints, why)}"
        for ids, why in constraints.inexact
    ]
    sizes = [f"  {claim}" for claim in constraints.sizes if claim.axis is not None]
    still = len(constraints.sizes) - len(sizes)
    lines = [f"{counted(constraints.ids - 1, 'id')}, {counted(len(equal), 'equation')}", *first_of(equal)]
    for noun, found in (("pin", pinned), ("inexact dimension", inexact), ("size", sizes)):
        lines += [counted(len(found), noun), *first_of(found)] if found else []
    return "\n".join([*lines, f"{counted(still, 'number')} that must stay as they are"] if still else lines)


def _at(constraints: Constraints, why: int) -> str:
    location: Location | None = constraints.reasons[why].location
    return f", {location.brief}" if location else ""
