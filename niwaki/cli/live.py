"""The progress display, and Ctrl-C: the first one asks the run to stop at a checkpoint, the second one ends it."""

from __future__ import annotations

import signal
from types import FrameType, TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from niwaki.train.loop import EpochResult
from niwaki.train.loop import TrainingProgress as Step


class LiveObserver:
    """Shows epoch, loss, accuracy and the fraction of MACs left during a run, and leaves one line per epoch. ``what``
    stands before each, if there are several trainings."""

    def __init__(self, console: Console, epochs: int, what: str = "") -> None:
        self._console, self._what = console, f"{what} " * bool(what)
        self._bar = Progress(
            TextColumn(self._what + "epoch {task.fields[epoch]:>3}/" + str(epochs)),
            BarColumn(bar_width=None),
            TextColumn("loss {task.fields[loss]}"),
            TextColumn("accuracy {task.fields[accuracy]}"),
            TextColumn("MACs left {task.fields[macs]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("train", total=None, epoch=0, loss="-", accuracy="-", macs="100%")
        self._epochs = epochs
        self._stop = False
        self._handler: Any = None

    def __enter__(self) -> LiveObserver:
        self._handler = signal.signal(signal.SIGINT, self._interrupt)
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        signal.signal(signal.SIGINT, self._handler)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._stop:
            raise KeyboardInterrupt
        self._stop = True

    def on_step(self, progress: Step) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.steps,
            epoch=progress.epoch,
            loss=f"{progress.loss:.3f}",
        )

    def on_epoch(self, result: EpochResult) -> None:
        """Show the epoch's accuracy and the fraction of MACs left."""
        self._bar.update(self._task, accuracy=f"{result.accuracy:.1%}", macs=f"{result.macs_left:.0%}")
        self._console.print(
            f"{self._what}epoch {result.epoch:>3}/{self._epochs}  loss {result.loss:.3f}  "
            f"accuracy {result.accuracy:.2%}  MACs left {result.macs_left:.0%}",
            highlight=False,
        )

    def should_stop(self) -> bool:
        """Whether Ctrl-C was pressed."""
        return self._stop
