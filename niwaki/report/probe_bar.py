"""A bar that shows how far the estimate of second derivatives is, and how stable its ranking."""

from __future__ import annotations

from types import TracebackType
from typing import Self, final

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from niwaki.criteria.products import ProbeProgress


@final
class ProbeBar:
    """A progress bar on the error stream, for ``niwaki.SecondDerivatives(progress=...)``.

    Example:
        >>> import io, niwaki, torch
        >>> from rich.console import Console
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(9, 4)
        >>> space = niwaki.search_space(net, x)
        >>> with ProbeBar(Console(file=io.StringIO())) as bar:
        ...     how = niwaki.SecondDerivatives(progress=bar)
        ...     scores = niwaki.score(
        ...         space, "relative_hessian_trace", [x], lambda net, x: net(x).square().mean(), second_derivatives=how
        ...     )
        >>> bar.last.probe, bar.last.stability > 0.5
        (30, True)
    """

    last: ProbeProgress | None = None

    def __init__(self, console: Console | None = None) -> None:
        columns = (TextColumn("batch {task.fields[batch]}"), BarColumn(), TextColumn("{task.completed}/{task.total}"))
        stability = TextColumn("rank stability {task.fields[stability]:.3f}")
        self._bar = Progress(*columns, stability, TimeElapsedColumn(), console=console or Console(stderr=True))
        self._task = self._bar.add_task("probes", total=1, batch=0, stability=0.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: ProbeProgress) -> None:
        """Show ``progress``."""
        self.last = progress
        self._bar.update(
            self._task,
            completed=progress.probe,
            total=progress.probes,
            batch=progress.batch,
            stability=progress.stability,
        )
