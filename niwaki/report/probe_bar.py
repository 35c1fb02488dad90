"""A bar that shows how far the estimate of second derivatives is, and how stable its ranking."""

from __future__ import annotations

from typing import final

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from niwaki.criteria.products import ProbeProgress
from niwaki.report.bar import Bar


@final
class ProbeBar(Bar):
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
        super().__init__((*columns, stability, TimeElapsedColumn()), console, batch=0, stability=0.0)

    def __call__(self, progress: ProbeProgress) -> None:
        """Show ``progress``."""
        self.last = progress
        self.show(progress.probe, progress.probes, batch=progress.batch, stability=progress.stability)
