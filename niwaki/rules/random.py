"""Follow axes through random sampling and dropout: the axes are kept, and only dropout keeps zeros."""

from __future__ import annotations

import torch
from torch import Tensor

from niwaki.rules.call import Call
from niwaki.rules.creation import constant, constant_like, counted
from niwaki.rules.identity import Handed
from niwaki.rules.indexing_read import by_value
from niwaki.rules.label import Label
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample

aten = torch.ops.aten

# Numbers in a tensor of a given size, or of the size of another one.
rule(aten.rand.default, aten.randn.default)(constant)
rule(aten.rand_like.default, aten.randn_like.default)(constant_like)
rule(aten.randint.default, aten.randint.low, aten.randperm.default)(counted)
rule(aten.bernoulli.Tensor, aten.multinomial.default)(by_value)


_COINS = (aten.bernoulli.default, aten.bernoulli.p, aten.bernoulli_.float)


@nonnegative("input")
@homogeneous("input")
@rule(aten.native_dropout.default)
def dropout(call: Call) -> list[Label]:
    """Output and mask."""
    x: Label = call["input"]
    return [call.label(x.axes, x.zero), call.label(x.axes, output=1)]


@nonnegative(of=_COINS)
@rule(
    *_COINS,
    aten.cauchy_.default,
    aten.exponential_.default,
    aten.geometric_.default,
    aten.log_normal_.default,
    aten.normal_.default,
    aten.poisson.default,
    aten.random_.default,
    aten.random_.to,
    aten.uniform_.default,
)
def redrawn(call: Call) -> Label:
    """Random numbers in place of the argument."""
    return call.label(call["self"].axes)


def _drawn(x: Tensor) -> Tensor:
    return x * torch.empty_like(x).bernoulli_(1.0)


def _drawn_over(x: Tensor) -> Tensor:
    return x.clone().bernoulli_(1.0)


sample(dropout)(lambda: Handed(lambda x: torch.native_dropout(x, 0.0, True)[0]))
sample(dropout)(lambda: Handed(lambda x: torch.native_dropout(x.sigmoid(), 0.0, True)[0]))
sample(redrawn)(lambda: Handed(_drawn))
sample(redrawn)(lambda: Handed(_drawn_over))


@mutant(dropout)
def _dropout_of_something_else(call: Call) -> list[Label]:
    x: Label = call["input"]
    axes = [call.fresh(axis.size) for axis in x.axes]
    return [call.label(axes), call.label(axes, output=1)]


@mutant(dropout)
def _dropout_makes_zeros(call: Call) -> list[Label]:
    x: Label = call["input"]
    return [call.label(x.axes, [True] * len(x.axes)), call.label(x.axes, output=1)]


@mutant(redrawn)
def _drawn_zeros(call: Call) -> Label:
    return call.label(call["self"].axes, [True] * len(call["self"].axes))
