"""Register rules, their samples and mutants, and what their operators do to common factors and signs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch._ops import OpOverload

from niwaki.rules.call import Call
from niwaki.rules.label import Label

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
