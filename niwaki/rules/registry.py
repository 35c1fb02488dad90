"""How a rule is written down, and what it may ask and say."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch._ops import OpOverload

from niwaki.core.counts import IntArray
from niwaki.core.numbers import Expression
from niwaki.core.repairs import Scalar
from niwaki.rules.axis import Axis, part, product_rows
from niwaki.trace.graph import PythonCall


@dataclass(frozen=True, slots=True, eq=False)
class Scale:
    """After a cut every entry is (positions / surviving positions of ``axis``) ** power times what it is in the zeroed
    model. ``why``: the number of the reason to give where nothing can take this up."""

    axis: Axis
    power: float
    why: int


@dataclass(frozen=True, slots=True)
class Source:
    """Every entry is one of parameter number ``value``, plus ``shift``: multiplying the tensor is changing that."""

    value: int
    shift: float


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """A tensor, seen by the rules.

    ``axes``: one per dimension. ``zero[d]``: in the zeroed model, entries at removed positions of dimension d are zero.
    ``weight``: made of parameters alone. ``uniform[d]``: the same entry all along dimension d (not known: no flags).
    ``places``: every entry is a whole number, the position of something along that axis.
    ``nonnegative``: no entry is negative, whatever the weights and inputs are.
    ``scale``, ``source``, ``places`` and ``nonnegative`` are followed from operator to operator outside the rules, by
    what `homogeneous` and `nonnegative` say.
    """

    axes: tuple[Axis, ...]
    zero: tuple[bool, ...]
    weight: bool
    dtype: torch.dtype
    scale: tuple[Scale, ...] = ()
    source: Source | None = None
    uniform: tuple[bool, ...] = ()
    index_of: Axis | None = None
    nonnegative: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The traced shape."""
        return tuple(axis.size for axis in self.axes)

    def __str__(self) -> str:
        zero = [
            str(dim)
            for dim, (axis, is_zero) in enumerate(zip(self.axes, self.zero, strict=True))
            if axis.free and is_zero
        ]
        said = [
            f"zero along dim {', '.join(zero)}" if zero else "",
            "made of parameters" if self.weight else "",
            "nonnegative" if self.nonnegative else "",
            "" if self.index_of is None else f"indices on {self.index_of}",
            *(f"times (size ratio of {scale.axis}) ** {scale.power:g}" for scale in self.scale),
        ]
        return "; ".join([f"[{', '.join(map(str, self.axes))}]", *filter(None, said)])


class Refused(Exception):
    """Raised by a rule that cannot follow this call: everything the operator touches is pinned with the reason."""


class Call(ABC):
    """One operator call, as a rule sees it: ``call["name"]`` is an argument by its name in the operator's schema, with
    tensors as `Label`."""

    operator: OpOverload
    python: PythonCall
    arguments: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]  # of the outputs
    dtypes: tuple[torch.dtype, ...]
    trains: bool  # whether the run, in eval mode, tells what train mode does too
    unused: bool  # whether nobody sees what comes out
    discarded: tuple[bool, ...]  # of each output: whether nothing reads it

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    @abstractmethod
    def fresh(self, size: int) -> Axis:
        """A new axis of ``size`` positions that nothing constrains yet."""

    @abstractmethod
    def fixed(self, size: int, why: str = "") -> Axis:
        """An axis that can never shrink, because ``why``."""

    @abstractmethod
    def equate(self, left: Axis, right: Axis) -> None:
        """Position i of ``left`` lives and dies with position i of ``right``."""

    @abstractmethod
    def equate_rows(self, left: IntArray, right: IntArray) -> None:
        """As `equate`, for bare rows of ids [n, K]."""

    @abstractmethod
    def pin(self, axis: Axis, why: str) -> None:
        """No position of ``axis`` may be removed, because ``why``."""

    @abstractmethod
    def inexact(self, axis: Axis, why: str) -> None:
        """Removing positions of ``axis`` changes the result although their entries are zero, because ``why``: they are
        pinned, unless the user allows it."""

    @abstractmethod
    def rescales(self, number: float, how: Scalar | tuple[Scale, ...]) -> None:
        """A cut changes this float argument: it is an attribute that is repaired, or scaled as sizes in Python say."""

    @abstractmethod
    def scale(self, axis: Axis, power: float, why: str) -> tuple[Scale, ...]:
        """What multiplies a result after a cut; nothing if ``axis`` is fixed. Where no weight can take it up, the axis
        is `inexact`, because ``why``."""

    @abstractmethod
    def contract(self, left: Label, left_dim: int, right: Label, right_dim: int) -> None:
        """The products over these two dimensions are summed."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Tell the user ``text``, once for the whole model."""

    @abstractmethod
    def consumes(self, weight: Label, dim: int, zero: bool) -> None:
        """``weight`` reads units along ``dim`` whose removed entries are zero already (``zero``) or not."""

    @abstractmethod
    def zeroed_by_method(self, weight: Label, dim: int) -> None:
        """Entries of ``weight`` along ``dim`` count for others also where all that they meet is zero: a norm runs over
        them. So a method has to bring those of removed units to zero, whether they make or read these units."""

    @abstractmethod
    def weight_norm_direction(self, weight: Label, dim: int) -> bool:
        """Entries of ``weight`` removed along ``dim`` keep their values in the zeroed model: they are the direction of
        something whose length is zero there. False, and nothing is said, if ``weight`` is not a parameter as it is."""

    @abstractmethod
    def produces(self, weight: Label, dim: int) -> None:
        """``weight`` makes units along ``dim``, whatever else reads them there (a tied embedding does both)."""

    @abstractmethod
    def size_exprs(self, given: Sequence[int], behind: int = 0) -> list[Expression | None]:
        """Where the whole numbers of one argument came from; None for those computed out of Python's sight. The first
        ``behind`` numbers of the Python call are other arguments."""

    @abstractmethod
    def int_expr(self, given: int) -> Expression:
        """Where one whole number came from; a literal if that is not known."""

    @abstractmethod
    def derived_by_torch(self, *names: str) -> None:
        """torch computes these whole-number arguments itself, from shapes: they may differ after a cut."""

    @abstractmethod
    def size_of(self, argument: str, dim: int) -> Expression:
        """The number of surviving positions of a dimension of a tensor argument."""

    @abstractmethod
    def size_is(self, expression: Expression | None, axis: Axis, what: str) -> None:
        """``expression`` must equal the surviving positions of ``axis``; a literal fixes the axis."""

    @abstractmethod
    def macs(self, times: int, *axes: Axis) -> None:
        """This call does ``times`` multiply-accumulates per combination of positions of ``axes``."""

    @abstractmethod
    def index_of(self, label: Label) -> Axis | None:
        """The axis on which the entries of ``label`` are positions, if they are. The rule that asks knows what to do:
        nobody else sees to it that the axis stays whole."""

    @property
    def derives_sizes(self) -> bool:
        """Whether sizes are computed from those of tensors: no function was called in Python, but autograd, or the body
        of an operator that calls functions, is at work."""
        return self.python.function is None

    @abstractmethod
    def indexed_by(self, axis: Axis, indices: Label, why: str) -> None:
        """Positions of ``axis`` are taken by the numbers in ``indices``. Only numbers that are known to be positions of
        the same axis will follow a cut; otherwise it is pinned, because ``why``."""

    def label(
        self,
        axes: Sequence[Axis],
        zero: Sequence[bool] | None = None,
        weight: bool = False,
        output: int = 0,
        scale: tuple[Scale, ...] = (),
    ) -> Label:
        """The label of output number ``output``."""
        flags = (False,) * len(axes) if zero is None else tuple(zero)
        return Label(tuple(axes), flags, weight, self.dtypes[output], scale)

    def opaque(self, output: int, why: str = "is not followed") -> Label:
        """The label of an output of which nothing can be removed."""
        return self.label([self.fixed(size, why) for size in self.shapes[output]], output=output)

    def split(self, axis: Axis, sizes: Sequence[int]) -> list[Axis]:
        """Part ``axis`` into a row-major product of axes of ``sizes``, with new ids where a boundary falls inside."""
        parting = part(axis, sizes)
        columns = [list(own) for own in parting.columns]
        for column, which in parting.mixed:
            new = [self.fresh(sizes[j]).ids[:, 0] for j in which]
            self.equate_rows(column[:, None], product_rows(new, sizes, which))
            for j, ids in zip(which, new, strict=True):
                columns[j].append(ids)
        return [Axis(_stack(own, size), axis.why) for own, size in zip(columns, sizes, strict=True)]


def _stack(columns: list[IntArray], size: int) -> IntArray:
    return np.stack(columns, axis=1) if columns else np.zeros((size, 0), dtype=np.int64)


Rule = Callable[[Call], Label | Sequence[Label] | None]


@dataclass(frozen=True, slots=True)
class Sample:
    """A small module whose forward calls the operator on its own parameters, for the law to be tried on.

    ``build`` gives a module with parameters and integer attributes; ``forward()`` takes no argument. ``tolerance``: how
    far its outputs may be off, relative to the largest; more than the law's own only where a kernel knows no float64.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    tolerance: float = 1e-10


R = TypeVar("R", bound=Rule)
Build = TypeVar("Build", bound=Callable[[], torch.nn.Module])


@dataclass(frozen=True, slots=True)
class Homogeneous:
    """Multiplying one of the arguments ``factors`` multiplies the result alike; the argument ``plus`` is added to it.
    ``whole``: the result holds every entry of the one argument and nothing else."""

    factors: tuple[str, ...]
    plus: str | None
    whole: bool


@dataclass(frozen=True, slots=True)
class Nonnegative:
    """No entry of a result is negative if none of these arguments has a negative entry; of all operators of a rule, or
    of some."""

    arguments: tuple[str, ...]
    operators: frozenset[OpOverload] | None


RULES: dict[OpOverload, Rule] = {}
NAMED: dict[str, Rule] = {}  # of operators that other libraries bring, which may not be there when niwaki is imported
HOMOGENEOUS: dict[Rule, Homogeneous] = {}
NONNEGATIVE: dict[Rule, list[Nonnegative]] = {}
SAMPLES: dict[Rule, list[Sample]] = {}
MUTANTS: dict[Rule, list[Rule]] = {}


def rule(*operators: OpOverload) -> Callable[[R], R]:
    """Register a function as the rule of these operators; an operator has one rule."""

    def register(function: R) -> R:
        for operator in operators:
            if operator in RULES:
                raise ValueError(f"{operator} has a rule already, in {inspect.getmodule(RULES[operator])}.")
            RULES[operator] = function
        return function

    return register


def named(*operators: str) -> Callable[[R], R]:
    """As `rule`, for operators of other libraries, by their qualified names."""

    def register(function: R) -> R:
        for operator in operators:
            if operator in NAMED:
                raise ValueError(f"{operator} has a rule already, in {inspect.getmodule(NAMED[operator])}.")
            NAMED[operator] = function
        return function

    return register


def homogeneous(*factors: str, plus: str | None = None, whole: bool = False) -> Callable[[R], R]:
    """Say of a rule how its operators treat a common factor of an argument. Without this nothing is assumed."""

    def register(function: R) -> R:
        HOMOGENEOUS[function] = Homogeneous(factors, plus, whole)
        return function

    return register


def nonnegative(*arguments: str, of: Iterable[OpOverload] | None = None) -> Callable[[R], R]:
    """Say of a rule, or ``of`` some of its operators, that no entry of the result is negative if none of ``arguments``
    has a negative entry (without any: in any case). Where the result holds all entries of an argument that goes without
    saying."""

    def register(function: R) -> R:
        claim = Nonnegative(arguments, None if of is None else frozenset(of))
        NONNEGATIVE.setdefault(function, []).append(claim)
        return function

    return register


def sample(function: Rule, tolerance: float = 1e-10) -> Callable[[Build], Build]:
    """Register a builder of a small module as a sample of a rule."""

    def register(build: Build) -> Build:
        SAMPLES.setdefault(function, []).append(Sample(build.__qualname__, build, tolerance))
        return build

    return register


def mutant(function: Rule) -> Callable[[R], R]:
    """Register a deliberately wrong version of a rule, which its samples must expose."""

    def register(wrong: R) -> R:
        MUTANTS.setdefault(function, []).append(wrong)
        return wrong

    return register
