"""What rules declare of zeros (`niwaki.rules.zeros`), tried on the calls of their samples, and of a few more."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki import rules
from niwaki.rules import pointwise
from niwaki.rules.registry import SAMPLES
from niwaki.rules.zeros import LIFTS, MIXTURES, PRODUCTS, QUOTIENTS
from niwaki.trace.operators import argument_of

aten = torch.ops.aten
Call = tuple[OpOverload, tuple[Any, ...], dict[str, Any]]


class Calls(TorchDispatchMode):
    """Keeps all calls of operators that something is declared of, with copies of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in {*PRODUCTS, *MIXTURES, *QUOTIENTS, *LIFTS}:
            copied = tuple(_copy(one) for one in args)
            self.seen.append((func, copied, {name: _copy(one) for name, one in (kwargs or {}).items()}))
        return func(*args, **(kwargs or {}))


def _copy(given: Any) -> Any:
    if isinstance(given, (list, tuple)):
        return type(given)(map(_copy, given))
    return given.detach().clone() if isinstance(given, Tensor) else given


def _calls() -> list[Call]:
    torch.manual_seed(0)
    x, y = torch.rand(3, 4) + 0.5, torch.rand(3, 4) + 0.5
    with Calls() as calls, torch.no_grad():
        for rule in {rules.find(operator): None for operator in (*PRODUCTS, *MIXTURES)}:
            for sample in SAMPLES[rule] if rule is not None else ():
                sample.build()()
        for norm in (nn.BatchNorm1d(4).train(), nn.BatchNorm1d(4, track_running_stats=False), nn.BatchNorm1d(4).eval()):
            norm(x)
        aten._native_batch_norm_legit(x, y[0], y[1], True, 0.1, 1e-5)
        aten._native_batch_norm_legit(x, y[0], y[1], y[2].clone(), y[0].clone(), True, 0.1, 1e-5)
        aten._native_batch_norm_legit_no_training(x, y[0], y[1], y[2], y[0], 0.1, 1e-5)
        torch.addmv(y[:, 0], x, y[0]), torch.addmv(y[:, 0], x, y[0], beta=2).addmv_(x, y[1])
        (
            x.reciprocal(),
            x.rsqrt(),
            x.log(),
            x.log2(),
            x.log10(),
            x.pow(-0.5),
            x.exp(),
            x.sigmoid(),
            x.softmax(1),
            x / y,
            x + 1e-3,
        )
        torch.div(x, y, rounding_mode="floor"), torch.mul(x, y)
        for two in ("div_", "mul_", "add_"):
            getattr(x.clone(), two)(y if two != "add_" else 0.5)
        x.clone().div_(y, rounding_mode="floor")
        for one in ("reciprocal_", "rsqrt_", "log_"):
            getattr(x.clone(), one)()
        x.clone().pow_(-1.0), x.clamp_min(1e-3), x.clamp(min=1e-3)
    return calls.seen


CALLS = _calls()
UNREACHED = {aten.cudnn_batch_norm.default, aten._sparse_addmm.default}  # on this device, with these tensors


def given(call: Call, name: str) -> Any:
    operator, args, kwargs = call
    position, default = argument_of(operator, name)
    return args[position] if position < len(args) else kwargs.get(name, default)


def made(call: Call, zero: Sequence[str]) -> Tensor:
    """The first result with these tensor arguments at zero."""
    operator, args, kwargs = call
    args = tuple(map(_copy, args))
    for name in zero:
        if isinstance(tensor := given((operator, args, kwargs), name), Tensor):
            tensor.zero_()
    result = operator(*args, **kwargs)
    first: Tensor = result if isinstance(result, Tensor) else result[0]
    return first


def of(declared: Mapping[OpOverload, Any] | set[OpOverload]) -> Iterator[tuple[Call, OpOverload]]:
    for call in CALLS:
        if call[0] in declared:
            yield call, call[0]


def test_products() -> None:
    for call, operator in of(PRODUCTS):
        said = PRODUCTS[operator]
        plus = [] if said.plus is None else [said.plus]
        for factor in said.factors:
            if isinstance(given(call, factor), Tensor):
                assert not made(call, [factor, *plus]).any(), operator
    assert {operator for _, operator in of(PRODUCTS)} == set(PRODUCTS) - UNREACHED


def test_what_is_added_matters() -> None:
    """A declaration that forgets ``plus`` is wrong."""
    forgetful = {
        operator
        for call, operator in of(PRODUCTS)
        if PRODUCTS[operator].plus and isinstance(given(call, PRODUCTS[operator].plus), Tensor)
        and made(call, PRODUCTS[operator].factors).any()
    }  # fmt: skip
    assert forgetful == {operator for operator, said in PRODUCTS.items() if said.plus} - UNREACHED


def test_quotients_have_no_value_at_zero() -> None:
    for call, operator in of(QUOTIENTS):
        said = QUOTIENTS[operator]
        if isinstance(given(call, said.divisor), Tensor) and (said.negative is None or given(call, said.negative) < 0):
            assert not made(call, [said.divisor]).isfinite().any(), operator
    assert {operator for _, operator in of(QUOTIENTS)} == set(QUOTIENTS)


def test_lifts_make_something_of_zero() -> None:
    for call, operator in of(LIFTS):
        number = None if LIFTS[operator].number is None else given(call, LIFTS[operator].number)
        if LIFTS[operator].number is None or (isinstance(number, (int, float)) and number > 0):
            first = operator._schema.arguments[0].name
            assert bool((made(call, [first]) != 0).all()), operator
    assert {operator for _, operator in of(LIFTS)} == set(LIFTS)


def test_mixtures_keep_entries_of_what_they_are_given() -> None:
    """Neither of the tensors decides alone whether the result is zero."""
    two = 0
    for call, operator in of(MIXTURES):
        names = [
            argument.name
            for argument in operator._schema.arguments
            if isinstance(given(call, argument.name), Tensor) and given(call, argument.name).is_floating_point()
        ]
        if len(names) > 1:
            two += any(bool(made(call, [name]).any()) for name in names)
    assert two > 10  # calls


@pytest.mark.parametrize("declared", [PRODUCTS, QUOTIENTS, LIFTS, MIXTURES])
def test_only_operators_with_a_rule_are_declared(declared: Any) -> None:
    assert all(rules.find(operator) is not None for operator in declared)


def test_an_argument_by_its_name() -> None:
    assert argument_of(aten.addmm.default, "mat2") == (2, None) and argument_of(aten.cat.default, "dim") == (1, 0)
    with pytest.raises(KeyError, match="aten.cat.default has no argument 'axis'"):
        argument_of(aten.cat.default, "axis")
    assert rules.find(aten.mul.Tensor) is pointwise.pointwise
