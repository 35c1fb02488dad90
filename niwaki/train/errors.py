"""Errors of the main job."""

from __future__ import annotations

from niwaki.errors import NiwakiError


class DataError(NiwakiError):
    """Images or labels that cannot be read, or do not fit the model."""


class RunError(NiwakiError):
    """A training run that cannot start, go on, or be resumed."""


class Interrupted(RunError):
    """A run that was asked to stop, and wrote a checkpoint before it did."""
