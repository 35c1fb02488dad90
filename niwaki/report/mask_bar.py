"""A bar that shows how far a mask is that is learnt in place of scores."""

from __future__ import annotations

from typing import final

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from niwaki.masks.ddp import MaskProgress
from niwaki.report.bar import Bar


@final
class MaskBar(Bar):
    """A progress bar on the error stream, for ``niwaki.DDPMasks(progress=...)``.

    Example:
        >>> import io, niwaki, torch
        >>> from rich.console import Console
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(9, 4)
        >>> space = niwaki.search_space(net, x)
        >>> with MaskBar(Console(file=io.StringIO())) as bar:
        ...     masks = niwaki.DDPMasks([x], lambda net, x: net(x).square().mean(), steps=8, progress=bar)
        ...     plan = niwaki.choose(space, masks, niwaki.Budget(macs=0.5))
        >>> bar.last.step, bar.last.decided
        (8, True)
    """

    last: MaskProgress | None = None

    def __init__(self, console: Console | None = None) -> None:
        columns = (BarColumn(), TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[found]}"))
        super().__init__((*columns, TimeRemainingColumn()), console, found="")

    def __call__(self, progress: MaskProgress) -> None:
        """Show ``progress``."""
        self.last = progress
        cost = "decided" if progress.decided else f"{progress.off:+.1%} off its budget"
        self.show(progress.step, progress.steps, found=f"loss {progress.loss:.3f}, {cost}")
