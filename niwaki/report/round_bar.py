"""A bar that shows how far a network is pruned in rounds."""

from __future__ import annotations

from typing import final

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from niwaki.report.bar import Bar


@final
class RoundBar(Bar):
    """A progress bar on the error stream, for ``niwaki.prune(told=...)``.

    Example:
        >>> import io, niwaki, torch
        >>> from rich.console import Console
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> console = Console(file=io.StringIO(), force_terminal=True, width=80)
        >>> with RoundBar(console) as bar:
        ...     pruned = niwaki.prune(net, torch.randn(1, 4), niwaki.Budget(macs=0.5), rounds=3, told=bar)
        >>> "round 3/3" in console.file.getvalue() and "50.0% of the MACs" in console.file.getvalue()
        True
    """

    def __init__(self, console: Console | None = None) -> None:
        columns = (TextColumn("round {task.completed:.0f}/{task.total:.0f}"), BarColumn())
        left = TextColumn("{task.fields[share]:.1%} of the MACs")
        super().__init__((*columns, left, TimeRemainingColumn()), console, share=1.0)

    def __call__(self, number: int, rounds: int, share: float) -> None:
        """Show that round ``number`` of ``rounds`` left the ``share`` of the MACs."""
        self.show(number, rounds, share=share)
