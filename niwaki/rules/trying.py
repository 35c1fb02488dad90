"""Find out what an element-wise operator does to zeros, signs and factors, by running it on numbers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch._ops import OpOverload

from niwaki.rules.call import Call
from niwaki.rules.label import Label

_TRIES = 32
_SIGN_TRIES = 512
_LARGEST_WHOLE = 1e6


def zeros_stay(call: Call, operands: Sequence[Label], known: Sequence[bool]) -> bool | None:
    """Whether the result is zero where the operands that are ``known`` to be zero are; None if it is infinite or
    undefined there."""
    return _zeros_stay(call.operator, _arguments(call, operands), tuple(known))


def never_negative(call: Call, operands: Sequence[Label], known: Sequence[bool]) -> bool:
    """Whether no entry of the result is negative as long as no entry of the operands that are ``known`` is. Tried on
    numbers of all magnitudes, near the other arguments too."""
    return _never_negative(call.operator, _arguments(call, operands), tuple(known))


def _arguments(call: Call, operands: Sequence[Label]) -> tuple[tuple[str, Any], ...]:
    return tuple(
        (name, _Operand(operands.index(given), given.dtype) if isinstance(given, Label) else _hashable(given))
        for name, given in call.arguments.items()
    )


class _Operand(tuple[int, torch.dtype]):
    """Stands for operand number i while trying an operator."""

    def __new__(cls, number: int, dtype: torch.dtype) -> _Operand:
        return super().__new__(cls, (number, dtype))


def _hashable(argument: Any) -> Any:
    if isinstance(argument, list):
        return tuple(argument)
    return argument


@lru_cache(maxsize=4096)
def _zeros_stay(operator: OpOverload, arguments: tuple[tuple[str, Any], ...], known: tuple[bool, ...]) -> bool | None:
    generator = torch.Generator().manual_seed(0)
    made: dict[int, torch.Tensor] = {}
    for _, given in arguments:
        if isinstance(given, _Operand):
            number, dtype = given
            values = torch.randn(_TRIES, generator=generator, dtype=torch.float64)
            if known[number]:
                values = torch.zeros(_TRIES, dtype=torch.float64)
            made[number] = _as(dtype, values)
    result = _run(operator, arguments, made)
    if not (result.dtype.is_floating_point or result.is_complex()):
        return bool((result == 0).all())
    masking = any(isinstance(given, _Operand) and given[1] is torch.bool for _, given in arguments)
    finite = result.isfinite() | ((result == -torch.inf) if masking else torch.zeros_like(result, dtype=torch.bool))
    if not bool(finite.all()):
        return None
    return bool((result == 0).all())


@lru_cache(maxsize=4096)
def _never_negative(operator: OpOverload, arguments: tuple[tuple[str, Any], ...], known: tuple[bool, ...]) -> bool:
    generator = torch.Generator().manual_seed(0)
    numbers = [abs(given) for _, given in arguments if type(given) in (int, float) and math.isfinite(given)]
    near = torch.tensor([times * number for number in numbers for times in (0.5, 1.0, 1.5)], dtype=torch.float64)
    small = torch.linspace(0, 8, 97, dtype=torch.float64)
    sizes = torch.cat([small, near, 10 ** torch.linspace(-40, 38, 79, dtype=torch.float64)])
    made: dict[int, torch.Tensor] = {}
    for number, dtype in (given for _, given in arguments if isinstance(given, _Operand)):
        values = torch.cat([sizes, sizes if known[number] else -sizes])
        values = values[torch.randint(len(values), (_SIGN_TRIES,), generator=generator)] if len(known) > 1 else values
        if not (dtype.is_floating_point or dtype.is_complex or dtype is torch.bool):
            made[number] = values.clamp(0 if known[number] else -_LARGEST_WHOLE, _LARGEST_WHOLE).round().to(dtype)
        else:
            made[number] = _as(dtype, values)
    try:
        result = _run(operator, arguments, made)
    except RuntimeError:  # numbers of a kind that it does not take
        return False
    return not result.is_complex() and not bool((result < 0).any())


def degree(
    call: Call, operands: Sequence[Label], powers: Sequence[float], scalars: Mapping[float, float]
) -> float | None:
    """The power of t by which the result changes when operand i is multiplied by t ** powers[i], and each float
    argument s by t ** scalars[s]; None if it does not change by a power of t. Tried on numbers from 1e-30 to
    1e2, so that no constant is too small to be noticed."""
    return _degree(call.operator, _arguments(call, operands), tuple(powers), tuple(scalars.items()))


@lru_cache(maxsize=4096)
def _degree(
    operator: OpOverload,
    arguments: tuple[tuple[str, Any], ...],
    powers: tuple[float, ...],
    scalars: tuple[tuple[float, float], ...],
) -> float | None:
    generator = torch.Generator().manual_seed(0)
    magnitude = 10 ** (32 * torch.rand(len(powers), _TRIES, generator=generator, dtype=torch.float64) - 30)
    sign = torch.rand(len(powers), _TRIES, generator=generator, dtype=torch.float64).sub(0.3).sign()
    dtypes = dict(given for _, given in arguments if isinstance(given, _Operand))
    times = dict(scalars)
    results = []
    for t in (1.0, 2.0, 3.0):
        made = {i: _as(dtype, magnitude[i] * sign[i] * t ** powers[i]) for i, dtype in dtypes.items()}
        given = tuple(
            (name, value * t ** times[value] if isinstance(value, float) and value in times else value)
            for name, value in arguments
        )
        results.append(_run(operator, given, made))
    base, double, triple = (
        (torch.view_as_real(result) if result.is_complex() else result).double() for result in results
    )
    if not torch.equal(base.isfinite(), double.isfinite()) or not torch.equal(base.isfinite(), triple.isfinite()):
        return None
    if not torch.equal(base == 0, double == 0) or not torch.equal(base == 0, triple == 0):
        return None
    counted = base.isfinite() & (base != 0)
    if not bool(counted.any()):
        return None
    found = torch.cat([(double / base)[counted].log2(), (triple / base)[counted].log() / math.log(3)])
    power = round(float(found[0]) * 4) / 4
    return power if bool((found - power).abs().max() < 1e-12) else None


_PLACEMENT = {"device", "memory_format"}  # where entries are stored does not matter for their values


def _as(dtype: torch.dtype, values: torch.Tensor) -> torch.Tensor:
    """Random numbers as an operand of type ``dtype``, in the precision of float64."""
    if dtype is torch.bool:
        return values > 0.5
    if dtype.is_complex:
        return torch.complex(values, values.flip(0))
    return values if dtype.is_floating_point else (values.abs() * 3).round().to(dtype)


def _run(
    operator: OpOverload, arguments: tuple[tuple[str, Any], ...], made: Mapping[int, torch.Tensor]
) -> torch.Tensor:
    """``operator`` on the numbers made for its operands; on one after the other where it takes no more at once."""
    try:
        return _called(operator, arguments, made)
    except RuntimeError:  # `masked_fill` fills in one number
        tries = len(next(iter(made.values())))
        each = [{i: values[k] for i, values in made.items()} for k in range(tries)]
        return torch.stack([_called(operator, arguments, numbers) for numbers in each])


def _called(
    operator: OpOverload, arguments: tuple[tuple[str, Any], ...], made: Mapping[int, torch.Tensor]
) -> torch.Tensor:
    filled = {name: made[given[0]] if isinstance(given, _Operand) else given for name, given in arguments}
    filled |= dict.fromkeys(_PLACEMENT & filled.keys())
    filled = {"self" if name == "input" and "self" in filled else name: given for name, given in filled.items()}
    positional = [filled[argument.name] for argument in operator._schema.arguments if not argument.kwarg_only]
    named = {a.name: filled[a.name] for a in operator._schema.arguments if a.kwarg_only}
    with torch.no_grad():
        result: torch.Tensor = operator(*positional, **named)
    return result
