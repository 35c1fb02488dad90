"""What the progress bars of long computations have in common."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import Progress, ProgressColumn


class Bar:
    """A bar with one task on the error stream, or on ``console``, shown inside of a ``with`` block.

    ``fields``: the first values of what the ``columns`` show.
    """

    def __init__(self, columns: tuple[ProgressColumn, ...], console: Console | None, **fields: Any) -> None:
        self._bar = Progress(*columns, console=console or Console(stderr=True))
        self._task = self._bar.add_task("", total=1, **fields)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def show(self, completed: int, total: int, **fields: Any) -> None:
        """Move the bar to ``completed`` of ``total``."""
        self._bar.update(self._task, completed=completed, total=total, **fields)
