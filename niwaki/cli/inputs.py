"""Create example inputs, fractions and directories from text on the command line."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.errors import RunError

_DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "bool": torch.bool,
}
_INPUT = re.compile(rf"(?:([A-Za-z_]\w*)=)?(\d+(?:x\d+)*)(?::({'|'.join(_DTYPES)}))?")


@dataclass(frozen=True, slots=True, eq=False)
class GivenInput:
    """One input; ``name``: the keyword argument it is for."""

    name: str | None
    value: Tensor


def parse_inputs(texts: Sequence[str]) -> tuple[GivenInput, ...]:
    """Inputs from shapes such as ``1x3x224x224`` (normally distributed), ``1x16:int64`` (zeros; likewise int32 and
    bool) or ``input_ids=1x16:int64`` for a keyword argument.

    Raises:
        RunError: a text is not a shape, or a name comes twice.

    >>> [(given.name, tuple(given.value.shape)) for given in parse_inputs(["1x3x8x8", "mask=1x16:bool"])]
    [(None, (1, 3, 8, 8)), ('mask', (1, 16))]
    """
    inputs: list[GivenInput] = []
    for text in texts:
        match = _INPUT.fullmatch(text)
        if match is None:
            raise RunError(
                f"{text!r} is not the shape of an input. Write it like 1x3x224x224, 1x16:int64 or "
                f"input_ids=1x16:int64; the types are {', '.join(_DTYPES)}."
            )
        name, shape = match[1], tuple(int(size) for size in match[2].split("x"))
        if name is not None and name in [given.name for given in inputs]:
            raise RunError(f"The input {name!r} is given twice. Give each argument once.")
        dtype = _DTYPES[match[3] or "float32"]
        value = torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.zeros(shape, dtype=dtype)
        inputs.append(GivenInput(name, value))
    return tuple(inputs)


def parse_shares(text: str) -> tuple[float, ...]:
    """Fractions in (0, 1] from text such as ``0.5,0.25``.

    Raises:
        RunError: the text is not a list of such fractions.

    >>> parse_shares("0.5, 0.25")
    (0.5, 0.25)
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError as cause:
        raise RunError(f"{text!r} is not a list of fractions. Write them like 0.5,0.25.") from cause
    for share in shares:
        if not 0 < share <= 1:
            raise RunError(f"{share} is not a fraction to keep: it must be above 0 and at most 1.")
    return shares


def output_directory(value: str | Path) -> Path:
    """The directory of this name. An empty name is refused: Python reads it as the current directory, and most likely a
    variable was unset.

    Raises:
        RunError: the name is empty.
    """
    if not str(value):
        raise RunError("--out is empty. Name a directory for the results; the current one is --out .")
    return Path(value)


def images_of(inputs: Sequence[GivenInput]) -> tuple[int, tuple[int, int]] | None:
    """Channels and size of the first input, if it is a batch of images."""
    if not inputs or inputs[0].value.ndim != 4:
        return None
    _, channels, height, width = inputs[0].value.shape
    return channels, (height, width)


def as_call(inputs: Sequence[GivenInput], model: nn.Module) -> Any:
    """The inputs as `niwaki.search_space` takes them: a tuple, or all by name if any has one.

    Raises:
        RunError: a positional input has no name in the model's ``forward``, or its name is also given.
    """
    if all(given.name is None for given in inputs):
        return tuple(given.value for given in inputs)
    parameters = inspect.signature(model.forward).parameters.values()
    names = [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    call = {given.name: given.value for given in inputs if given.name is not None}
    for position, given in enumerate(given for given in inputs if given.name is None):
        if position >= len(names) or names[position] in call:
            taken = f" is {names[position]!r}, which is also given by name" if position < len(names) else " has no name"
            raise RunError(
                f"The positional input number {position + 1}{taken}. Name all inputs: --input name=1x16:int64."
            )
        call[names[position]] = given.value
    return call
