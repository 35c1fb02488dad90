"""Follow a factor of n/m from the average where it arises to the weight that absorbs it.

A mean over n entries, of which the removed ones are zero, is n/m times as large after a cut that keeps m. Homogeneous
operators pass the factor on, until a tensor made of one parameter is multiplied with it: that parameter is repaired. An
epsilon that is added on the way is repaired too, if it is an attribute. Anywhere else the average is inexact, and its
axis is marked. A parameter or attribute that is also used without the factor cannot be repaired.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from niwaki.core.repairs import Scalar
from niwaki.rules.call import Call
from niwaki.rules.constraints import Constraints, RepairClaim
from niwaki.rules.label import Label, Scale, Source
from niwaki.rules.pointwise import pointwise
from niwaki.rules.registry import HOMOGENEOUS, Homogeneous, Rule
from niwaki.rules.trying import degree

aten = torch.ops.aten
_CASTS = Homogeneous(("self",), None, whole=True)
_WHY = "a number that Python computes from it is part of the computed function"
_SHIFTS = (aten.add.Tensor, aten.add.Scalar)


class Scaling:
    """Follows the factors of one graph, operator by operator."""

    def __init__(self, constraints: Constraints) -> None:
        self._constraints = constraints
        self._used_raw: set[int | Scalar] = set()  # parameters and attributes that something uses without a factor
        self._followed: set[int] = set()  # frozen numbers of a run that are used as factors
        self._held: set[int] = set()  # frozen numbers of a run that have another use

    def begin(self) -> None:
        """Start another run, which has numbers of its own."""
        self._followed.clear()
        self._held.clear()

    def releases(self, frozen: int) -> bool:
        """Whether a frozen number may change after all, because it is used only as a factor."""
        return frozen in self._followed and frozen not in self._held

    def follow(self, call: Call, rule: Rule | None, made: Sequence[Label]) -> list[Label]:
        """Add scale and source to the labels ``made`` by a rule (None: it refused)."""
        sized, taken = _sized(call, self._constraints), list[_SizedScale]()
        for one in sized:
            call.rescales(one.given, one.scale)
        if call.unused or _only_sizes(call):
            return list(made)
        operands = list(_labels(call.arguments.values()))
        claimed: set[int | Scalar] = set()
        scale: tuple[Scale, ...] | None = ()
        source: Source | None = None
        if any(label.scale or label.source for label in operands):
            how = _CASTS if call.operator is aten._to_copy.default else HOMOGENEOUS.get(rule) if rule else None
            if how is not None:
                scale, source = self._product(call, how, claimed)
            elif rule is pointwise:
                scale, source = self._pointwise(call, operands, sized, taken, claimed)
            else:
                scale = None
        if scale is None:
            for label in operands:
                self.refuse(label.scale)
            scale = ()
        for one in sized:
            (self._followed if one in taken else self._held).update(one.frozen)
        for label in operands:
            if label.source is not None and source is None:
                self._use(label.source.value, claimed)
        for scalar in call.python.scalars:
            if _given(call, scalar.value) is not None:
                self._use(scalar, claimed)
        if not scale and source is None:
            return list(made)
        return [self._scaled(label, scale, source) for label in made]

    def _scaled(self, made: Label, scale: tuple[Scale, ...], source: Source | None) -> Label:
        """Give a result its factor. Booleans do not depend on it; whole numbers cannot carry it, so it is refused."""
        if made.dtype.is_floating_point or made.dtype.is_complex:
            return replace(made, scale=_product((*scale, *made.scale)), source=source)
        if made.dtype is not torch.bool:
            self.refuse(scale)
        return made

    def refuse(self, scale: Iterable[Scale]) -> None:
        """Mark the averages inexact where these factors arise: nothing absorbs them."""
        for factor in scale:
            self._constraints.mark_inexact(factor.axis.ids.reshape(-1), factor.why)

    def finish(self) -> None:
        """Refuse repairs of parameters and attributes that something else uses without a factor."""
        for claim in self._constraints.repairs:
            if claim.target in self._used_raw:
                self.refuse(claim.scale)

    def _use(self, what: int | Scalar, claimed: set[int | Scalar]) -> None:
        if what not in claimed:
            self._used_raw.add(what)

    def _claim(self, target: int | Scalar, shift: float, scale: tuple[Scale, ...], claimed: set[int | Scalar]) -> None:
        self._constraints.repairs.append(RepairClaim(target, shift, scale))
        claimed.add(target)

    def _product(
        self, call: Call, how: Homogeneous, claimed: set[int | Scalar]
    ) -> tuple[tuple[Scale, ...] | None, Source | None]:
        """The scale and source of a result that is multilinear in some arguments."""
        factors = list(_labels(call.arguments[name] for name in how.factors))
        others = {name: argument for name, argument in call.arguments.items() if name not in how.factors}
        if any(isinstance(call.arguments[name], tuple) for name in how.factors):  # joined, not multiplied
            if any(not _equal(label.scale, factors[0].scale) for label in factors):
                return None, None
            return factors[0].scale, None
        total = _product([factor for label in factors for factor in label.scale])
        absorbing = [label for label in factors if label.source is not None and not label.scale]
        if total and absorbing:
            assert absorbing[0].source is not None
            self._claim(absorbing[0].source.value, absorbing[0].source.shift, _inverse(total), claimed)
            total = ()
        for name, argument in others.items():
            if any(not _equal(label.scale, total if name == how.plus else ()) for label in _labels([argument])):
                return None, None
        return total, factors[0].source if how.whole and not total else None

    def _pointwise(
        self,
        call: Call,
        operands: Sequence[Label],
        sized: Sequence[_SizedScale],
        taken: list[_SizedScale],
        claimed: set[int | Scalar],
    ) -> tuple[tuple[Scale, ...] | None, Source | None]:
        """The scale and source of a result that is computed entry by entry, found by trying the operator on numbers.
        Those of ``sized`` that are used as factors are added to ``taken``."""
        scaled = _product([replace(factor, power=1.0) for label in operands for factor in label.scale])
        if not scaled and not sized:
            return (), _shifted(call, operands)
        found: list[Scale] = []
        for one in sized:
            power = degree(call, operands, [0.0] * len(operands), {one.given: 1.0})
            if power is not None:
                found += [replace(factor, power=power * factor.power) for factor in one.scale]
                taken.append(one)
        for factor in scaled:
            powers = [sum(f.power for f in label.scale if f.axis.same_as(factor.axis)) for label in operands]
            power = degree(call, operands, powers, {})
            if power is None:
                power = self._with_scalars(call, operands, powers, factor, claimed)
            if power is None:
                return None, None
            if power != 0:
                found.append(replace(factor, power=power))
        found = list(_product(found))
        for i, label in enumerate(operands):
            if found and label.source is not None and not label.scale and _takes_up(call, operands, i, found):
                self._claim(label.source.value, label.source.shift, _inverse(found), claimed)
                return (), None
        return tuple(found), None

    def _with_scalars(
        self, call: Call, operands: Sequence[Label], powers: Sequence[float], factor: Scale, claimed: set[int | Scalar]
    ) -> float | None:
        """The degree of the result if a float attribute among the arguments is rescaled as well."""
        for scalar in call.python.scalars:
            given = _given(call, scalar.value)
            if given is not None:
                own = max(powers, key=abs)
                power = degree(call, operands, powers, {given: own})
                if power is not None:
                    self._claim(scalar, 0.0, (replace(factor, power=own),), claimed)
                    call.rescales(given, scalar)
                    return power
        return None


def _only_sizes(call: Call) -> bool:
    """Whether only the sizes of the results are used, as in ``weight[0].numel()``."""
    return bool(call.discarded) and all(call.discarded) and not call.operator._schema.is_mutable


@dataclass(frozen=True, slots=True, eq=False)
class _SizedScale:
    """A float argument that Python computes from sizes, so that a cut changes it: how a cut scales it, and the frozen
    numbers that it is computed from."""

    given: float
    scale: tuple[Scale, ...]
    frozen: frozenset[int]


def _sized(call: Call, constraints: Constraints) -> list[_SizedScale]:
    """Find the arguments that are products of powers of sizes."""
    found = []
    for power in call.python.powers:
        given = _given(call, power.value)
        labels = {
            count: constraints.labels[count.axis[0]] for count, _ in power.factors if isinstance(count.axis, tuple)
        }
        if given is not None and all(label is not None for label in labels.values()):
            scale: list[Scale] = []
            for count, exponent in power.factors:
                label = labels[count]
                assert label is not None and isinstance(count.axis, tuple)
                scale += call.scale(label.axes[count.axis[1]], -exponent, _WHY)
            found.append(_SizedScale(given, _product(scale), power.frozen))
    return found


def _given(call: Call, value: float) -> float | None:
    """Find the argument that is this number, which torch's own code may have rounded to float32."""
    for argument in call.arguments.values():
        if isinstance(argument, float) and math.isclose(argument, value, rel_tol=1e-6):
            return argument
    return None


def _takes_up(call: Call, operands: Sequence[Label], number: int, found: Sequence[Scale]) -> bool:
    """Whether dividing one operand by a factor divides the result by it."""
    powers = [0.0] * len(operands)
    powers[number] = 1.0
    return degree(call, operands, powers, {}) == 1.0


def _shifted(call: Call, operands: Sequence[Label]) -> Source | None:
    """The source of a parameter plus a number that is not an attribute."""
    if call.operator not in _SHIFTS or len(operands) != 1 or operands[0].source is None:
        return None
    number, times = call.arguments["other"], call.arguments.get("alpha", 1)
    if not isinstance(number, (int, float)) or not isinstance(times, (int, float)):
        return None
    return replace(operands[0].source, shift=operands[0].source.shift + number * times)


def _labels(arguments: Iterable[object]) -> Iterator[Label]:
    for argument in arguments:
        if isinstance(argument, Label):
            yield argument
        elif isinstance(argument, tuple):
            yield from _labels(argument)


def _product(factors: Iterable[Scale]) -> tuple[Scale, ...]:
    """Merge factors of equal axes, and drop those that cancel."""
    found: list[Scale] = []
    for factor in factors:
        place = next((i for i, known in enumerate(found) if known.axis.same_as(factor.axis)), None)
        if place is None:
            found.append(factor)
        else:
            found[place] = replace(found[place], power=found[place].power + factor.power)
    return tuple(factor for factor in found if factor.power != 0)


def _inverse(scale: Iterable[Scale]) -> tuple[Scale, ...]:
    return tuple(replace(factor, power=-factor.power) for factor in scale)


def _equal(scale: Sequence[Scale], other: Sequence[Scale]) -> bool:
    return not _product((*scale, *_inverse(other)))
