"""Follow values that cannot be negative: outputs of a ReLU, squares, sums of these.

The maximum of such entries does not change when entries that are zero are removed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.pointwise import pointwise
from niwaki.rules.registry import HOMOGENEOUS, NONNEGATIVE, Rule
from niwaki.rules.trying import never_negative


def follow(call: Call, rule: Rule | None, made: Sequence[Label]) -> list[Label]:
    """Add what is known of signs to the labels ``made`` by a rule (None: it refused)."""
    if rule is None or not _nonnegative(call, rule):
        return list(made)
    return [replace(label, nonnegative=True) for label in made]


def _nonnegative(call: Call, rule: Rule) -> bool:
    if rule is pointwise:
        operands = [given for given in call.arguments.values() if isinstance(given, Label)]
        return never_negative(call, operands, [label.nonnegative for label in operands])
    how = HOMOGENEOUS.get(rule)
    if how is not None and how.whole:
        return all(_sign(call.arguments[name]) for name in how.factors)
    return any(
        all(_sign(call.arguments[name]) for name in claim.arguments)
        for claim in NONNEGATIVE.get(rule, ())
        if claim.operators is None or call.operator in claim.operators
    )


def _sign(argument: Any) -> bool:
    """Whether an argument (each tensor of a list) is known not to be negative, or is not given."""
    if isinstance(argument, tuple):
        return all(map(_sign, argument))
    if isinstance(argument, Label):
        return argument.nonnegative
    return argument is None or argument >= 0
