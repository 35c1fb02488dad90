"""The rules: what each ATen operator does to the axes of its tensors, one file per family.

A rule sees shapes, axes and static arguments; never a weight, a module or a pruning function. Files are named as
PyTorch's documentation names its groups of operators, and all overloads of an operator have their rules in one file.
To add a family, write one file and add its name to the import and to ``__all__`` here. Rules make their statements
to a `niwaki.rules.call.Call`, which writes them into `niwaki.rules.constraints.Constraints`. A new statement is a
method of the former, a field of the latter, and its reader in ``solve``. Imports core and trace.
"""

import torch
from torch._ops import OpOverload

from niwaki.rules import (
    activations,
    attention,
    convolution,
    creation,
    cumulative,
    embedding,
    fake_quantize,
    fft,
    gradients,
    grouped_mm,
    identity,
    indexing_read,
    indexing_write,
    joining,
    linalg,
    losses,
    matmul,
    normalization,
    patches,
    pixel_shuffle,
    pointwise,
    pooling,
    random,
    reductions,
    rnn,
    sorting,
    triangular,
    turning,
    views,
    vision,
    weight_norm,
)
from niwaki.rules.registry import NAMED, RULES, Rule

__all__ = [
    "find",
    "activations",
    "attention",
    "convolution",
    "creation",
    "cumulative",
    "embedding",
    "fake_quantize",
    "fft",
    "gradients",
    "grouped_mm",
    "identity",
    "indexing_read",
    "indexing_write",
    "joining",
    "linalg",
    "losses",
    "matmul",
    "normalization",
    "patches",
    "pixel_shuffle",
    "pointwise",
    "pooling",
    "random",
    "reductions",
    "rnn",
    "sorting",
    "triangular",
    "turning",
    "views",
    "vision",
    "weight_norm",
]


def find(operator: OpOverload) -> Rule | None:
    """The rule of an operator: its own, the element-wise one for operators that PyTorch tags as such, or None."""
    known = RULES.get(operator) or NAMED.get(operator._schema.name)
    if known is None and torch.Tag.pointwise in operator.tags:
        return pointwise.pointwise
    return known
