"""Every error niwaki raises on purpose: a sentence that says what, where, why and what to do."""

from __future__ import annotations


class NiwakiError(Exception):
    """Base of all errors that niwaki raises on purpose."""


class TraceError(NiwakiError):
    """The model could not be run with the example inputs.

    ``operator`` is the number of the operator that failed or, if Python code failed between two, of the one before.
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
    """A method, schedule or criterion that was given something it cannot work with."""


class ShrinkError(NiwakiError):
    """Training state that cannot follow a network that shrinks in place."""
