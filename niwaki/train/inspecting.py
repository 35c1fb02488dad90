"""What `niwaki inspect` needs beside the search space: inputs from text, and a network for them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from niwaki.train.errors import RunError
from niwaki.train.models import Task, build_model

_INPUT = re.compile(r"(\d+(?:x\d+)*)(?::(float32|float64|int64|int32|bool))?")


def parse_inputs(texts: Sequence[str]) -> tuple[Tensor, ...]:
    """Tensors from shapes such as ``1x3x224x224`` (float32) or ``1x16:int64`` (zeros).

    Raises:
        RunError: a text is not a shape.

    Example:
        >>> [tuple(x.shape) for x in parse_inputs(["1x3x8x8", "1x16:int64"])]
        [(1, 3, 8, 8), (1, 16)]
    """
    inputs: list[Tensor] = []
    for text in texts:
        match = _INPUT.fullmatch(text)
        if match is None:
            raise RunError(f"{text!r} is not the shape of an input. Write it like 1x3x224x224, or 1x16:int64.")
        shape = tuple(int(size) for size in match[1].split("x"))
        kind = match[2] or "float32"
        if kind.startswith("float"):
            inputs.append(torch.randn(shape, dtype=getattr(torch, kind)))
        else:
            inputs.append(torch.zeros(shape, dtype=getattr(torch, kind)))
    return tuple(inputs)


def parse_shares(text: str) -> tuple[float, ...]:
    """Shares in (0, 1] from text such as ``0.5,0.25``.

    Raises:
        RunError: the text is not a list of such shares.

    Example:
        >>> parse_shares("0.5, 0.25")
        (0.5, 0.25)
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError as cause:
        raise RunError(f"{text!r} is not a list of shares. Write them like 0.5,0.25.") from cause
    for share in shares:
        if not 0 < share <= 1:
            raise RunError(f"{share} is not a share to keep: it must be above 0 and at most 1.")
    return shares


def build_for(name: str, inputs: Sequence[Tensor], classes: int) -> nn.Module:
    """The network ``name`` for inputs like these."""
    shape = tuple(inputs[0].shape)
    channels, size = (shape[1], (shape[2], shape[3])) if len(shape) == 4 else (1, (1, 1))
    return build_model(name, Task(classes, channels, size))
