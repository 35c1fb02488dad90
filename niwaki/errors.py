"""Errors that a user can act on. Their texts are sentences: what is wrong, where, why, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_LONGEST = 240  # characters of a message that is quoted in another


def first_line(message: object, longest: int = _LONGEST) -> str:
    r"""The first line with words of a message, shortened to ``longest`` characters, to be quoted in a sentence.

    >>> first_line("expected one of:\n * (Tensor input)\n * (Tensor input, int dim)")
    'expected one of:'
    """
    line = next((" ".join(line.split()) for line in str(message).splitlines() if line.strip()), "")
    return line if len(line) <= longest else f"{line[: longest - 3]}..."


def nearest(name: str, names: Iterable[str]) -> str:
    """A question that proposes up to three similar names; an empty text without any.

    >>> nearest("magnitud", ["magnitude", "taylor1"])
    ' Did you mean magnitude?'
    """
    near = difflib.get_close_matches(name, list(names), n=3)
    return f" Did you mean {' or '.join(near)}?" if near else ""


class NiwakiError(Exception):
    """Base of all errors that niwaki raises on purpose."""


class TraceError(NiwakiError):
    """The model could not be run with the example inputs.

    ``operator`` is the number of the operator that failed or, if Python code failed between two operators, of the
    first.
    """

    def __init__(self, message: str, operator: int = 0) -> None:
        super().__init__(message)
        self.operator = operator


class UnknownName(NiwakiError):
    """A name or a name pattern that matches nothing."""


class BudgetError(NiwakiError):
    """A budget that is malformed, or that this search space cannot meet."""


class PlanError(NiwakiError):
    """A plan that does not fit the model it is applied to."""


class FileFormatError(NiwakiError):
    """A saved file that is damaged, foreign, or of another architecture."""


class ExportError(NiwakiError):
    """A network that cannot be exported, or whose export computes something else."""


class MethodError(NiwakiError):
    """A method, schedule or criterion with an argument that it cannot use."""


class WeightsError(MethodError, RuntimeError):
    """Weights loaded into a model that has shrunk since. A `RuntimeError` too, as torch raises where shapes differ."""


class ShrinkError(NiwakiError):
    """Training state that cannot follow a network that shrinks in place."""


class DataError(NiwakiError):
    """Images or labels that cannot be read, or do not fit the model."""


class RunError(NiwakiError):
    """A training run that cannot start, continue, or be resumed."""


class Interrupted(RunError):
    """A run that was stopped by its observer, after it wrote a checkpoint."""
