"""What each ATen operator does to the axes of its tensors: one file per family, found by import below.

A rule sees shapes, axes and static arguments; never a weight, a module or a pruning function. A new family is one file
and one import line here. Imports core and trace.
"""

from niwaki.rules import (
    attention,
    combining,
    contraction,
    convolution,
    creation,
    identity,
    indexing,
    norms,
    pointwise,
    reductions,
    views,
    windows,
)

__all__ = [
    "attention",
    "combining",
    "contraction",
    "convolution",
    "creation",
    "identity",
    "indexing",
    "norms",
    "pointwise",
    "reductions",
    "views",
    "windows",
]
