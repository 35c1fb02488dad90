"""What each ATen operator does to the axes of its tensors: one file per family, found by import below.

A rule sees shapes, axes and static arguments; never a weight, a module or a pruning function. A new family is one file
and one import line here. Imports core and trace.
"""

import torch
from torch._ops import OpOverload

from niwaki.rules import (
    algebra,
    attention,
    combining,
    contraction,
    convolution,
    creation,
    detection,
    diagonals,
    distances,
    gradients,
    identity,
    indexing_read,
    indexing_write,
    losses,
    norms,
    places,
    pointwise,
    quantising,
    recurrent,
    reductions,
    routing,
    sampling,
    shuffling,
    spectral,
    values,
    views,
    weights,
    windows,
    writing,
)
from niwaki.rules.registry import NAMED, RULES, Rule

__all__ = [
    "find",
    "algebra",
    "attention",
    "combining",
    "contraction",
    "convolution",
    "creation",
    "detection",
    "diagonals",
    "distances",
    "gradients",
    "identity",
    "indexing_read",
    "indexing_write",
    "losses",
    "norms",
    "places",
    "pointwise",
    "quantising",
    "recurrent",
    "reductions",
    "routing",
    "sampling",
    "shuffling",
    "spectral",
    "values",
    "views",
    "weights",
    "windows",
    "writing",
]


def find(operator: OpOverload) -> Rule | None:
    """The rule of an operator: its own, or the element-wise one if PyTorch tags it so, or None."""
    known = RULES.get(operator) or NAMED.get(operator._schema.name)
    if known is None and torch.Tag.pointwise in operator.tags:
        return pointwise.pointwise
    return known
