"""How a rule is written and registered, and the statements that it can make about a call."""

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
    """A factor of every entry: after a cut, (positions / surviving positions of ``axis``) ** power times its value in
    the zeroed model. ``why``: the number of the reason to give where no weight can take it up."""

    axis: Axis
    power: float
    why: int


@dataclass(frozen=True, slots=True)
class Source:
    """The parameter that a tensor is made of: every entry is one of parameter number ``value``, plus ``shift``. To
    multiply the tensor, that parameter is changed."""

    value: int
    shift: float


@dataclass(frozen=True, slots=True, eq=False)
class Label:
    """What the rules know of a tensor.

    ``axes``: one per dimension. ``zero[d]``: in the zeroed model, entries at removed positions of dimension d are zero.
    ``weight``: made of parameters alone. ``uniform[d]``: all entries along dimension d are equal (empty if not known).
    ``index_of``: the axis along which every entry is an index, if they are indices. ``nonnegative``: no entry is
    negative, whatever the weights and inputs are. ``scale``, ``source``, ``index_of`` and ``nonnegative`` are passed
    from operator to operator outside of the rules, by what `homogeneous` and `nonnegative` declare.
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
    trains: bool  # whether a run in eval mode stands for train mode too
    unused: bool  # whether nothing reads the outputs
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
        """Position i of ``left`` is removed exactly when position i of ``right`` is."""

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
        """A cut changes this float argument, ``number``: it is an attribute that is repaired, or the code computes it
        from sizes."""

    @abstractmethod
    def scale(self, axis: Axis, power: float, why: str) -> tuple[Scale, ...]:
        """The factor of a result after a cut, none if ``axis`` is fixed. Where no weight can take it up, the axis is
        `inexact`, because ``why``."""

    @abstractmethod
    def contract(self, left: Label, left_dim: int, right: Label, right_dim: int) -> None:
        """The products over these two dimensions are summed."""

    @abstractmethod
    def note(self, text: str) -> None:
        """Report ``text`` to the user, once for the whole model."""

    @abstractmethod
    def consumes(self, weight: Label, dim: int, zero: bool) -> None:
        """``weight`` consumes units along ``dim``; ``zero``: whether their removed entries are zero already."""

    @abstractmethod
    def zeroed_by_method(self, weight: Label, dim: int) -> None:
        """A method has to bring entries of ``weight`` along ``dim`` to zero for removed units, whether they produce or
        consume these units: other entries depend on them (a norm runs over them) even where all inputs are zero."""

    @abstractmethod
    def weight_norm_direction(self, weight: Label, dim: int) -> bool:
        """Entries of ``weight`` that are removed along ``dim`` keep their values in the zeroed model: they are the
        direction of a weight whose length is zero there. Returns False, and states nothing, if ``weight`` is not a
        parameter itself."""

    @abstractmethod
    def produces(self, weight: Label, dim: int) -> None:
        """``weight`` produces units along ``dim``, also where it consumes them (a tied embedding does both)."""

    @abstractmethod
    def size_exprs(self, given: Sequence[int], behind: int = 0) -> list[Expression | None]:
        """The expressions of the whole numbers of one argument; None for those that torch computes. The first
        ``behind`` numbers of the Python call belong to other arguments."""

    @abstractmethod
    def int_expr(self, given: int) -> Expression:
        """The expression of one whole number; a literal if it is not known."""

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
        """The axis along which the entries of ``label`` are indices, or None. The rule that asks must handle them:
        nothing else pins that axis."""

    @property
    def derives_sizes(self) -> bool:
        """Whether torch computes the sizes from those of tensors: the call comes from autograd or from the body of an
        operator, not from a function that Python called."""
        return self.python.function is None

    @abstractmethod
    def indexed_by(self, axis: Axis, indices: Label, why: str) -> None:
        """Positions of ``axis`` are read by the entries of ``indices``. Only indices on the same axis can follow a cut;
        without them the axis is pinned, because ``why``."""

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
        """The label of an output of which no position can be removed."""
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
    """A small module whose forward calls the operator on its own parameters; `niwaki.testing.check_rule` cuts it.

    ``build`` gives a module with parameters and integer attributes; ``forward()`` takes no argument. ``tolerance``: the
    allowed difference of its outputs, relative to the largest; above the default only for kernels without float64.
    """

    name: str
    build: Callable[[], torch.nn.Module]
    tolerance: float = 1e-10


R = TypeVar("R", bound=Rule)
Build = TypeVar("Build", bound=Callable[[], torch.nn.Module])


@dataclass(frozen=True, slots=True)
class Homogeneous:
    """Multiplying one of the arguments ``factors`` by a number multiplies the result by it; the argument ``plus`` is
    added to the result. ``whole``: the result holds every entry of that argument and nothing else."""

    factors: tuple[str, ...]
    plus: str | None
    whole: bool


@dataclass(frozen=True, slots=True)
class Nonnegative:
    """No entry of a result is negative if none of these arguments has a negative entry. ``operators``: those of the
    rule that this holds for; None for all."""

    arguments: tuple[str, ...]
    operators: frozenset[OpOverload] | None


RULES: dict[OpOverload, Rule] = {}
NAMED: dict[str, Rule] = {}  # operators of other libraries, which may be imported after niwaki
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
    """Declare how the operators of a rule treat a common factor of an argument. Without it, nothing is assumed."""

    def register(function: R) -> R:
        HOMOGENEOUS[function] = Homogeneous(factors, plus, whole)
        return function

    return register


def nonnegative(*arguments: str, of: Iterable[OpOverload] | None = None) -> Callable[[R], R]:
    """Declare that no entry of the result is negative if none of ``arguments`` has a negative entry (without arguments:
    in any case), for the operators ``of`` a rule or all of them. Not needed where the result holds all entries of an
    argument."""

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
