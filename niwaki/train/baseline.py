"""The dense network, trained as a run was but without pruning: what the small one is to be compared with."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from niwaki.errors import RunError
from niwaki.report import Baseline, RunReport, write_run_page
from niwaki.train.checkpoint import FOLDER
from niwaki.train.job import check_output, held_by, train, write_report
from niwaki.train.loop import RunObserver
from niwaki.train.recipe import NO_METHOD, Recipe

BASELINE_FOLDER = "baseline"


def baseline_waits(out: Path) -> bool:
    """Whether the baseline of the run in ``out`` was interrupted."""
    return (out / BASELINE_FOLDER / FOLDER).is_dir()


def check_place(out: Path, *, overwrite: bool) -> None:
    """Raise `RunError` before any training if the baseline of a run in ``out`` would replace another run."""
    place = out / BASELINE_FOLDER
    check_output(place)
    if not overwrite and (name := held_by(place)):
        raise RunError(
            f"{str(place)!r} already holds a run ({name}), and --baseline trains the dense network there. Replace it "
            "with --overwrite, or choose another --out."
        )


def add_baseline(
    report: RunReport,
    out: Path,
    observer: RunObserver,
    *,
    device: str = "cpu",
    checkpoint_every: int | None = None,
    overwrite: bool = False,
) -> RunReport:
    """Train the dense network of a finished run into ``out/baseline``, and write the report of the run again, with it.
    An interrupted baseline continues, unless ``overwrite`` replaces what is there.

    Raises:
        Interrupted: the observer asked to stop; a checkpoint has been written.
        NiwakiError: the training cannot start or continue.
    """
    dense = dataclasses.replace(Recipe(**report.recipe), method=NO_METHOD, shrink=False, erase=False, narrow=False)
    waits = baseline_waits(out) and not overwrite
    found = train(
        dense,
        out / BASELINE_FOLDER,
        observer,
        device=device,
        resume=waits,
        overwrite=overwrite,
        checkpoint_every=checkpoint_every,
        measure_seconds=0.0,
    )
    complete = dataclasses.replace(report, baseline=Baseline(found.small.accuracy, found.history, found.seconds))
    write_report(complete, out)
    write_run_page(complete, out)
    return complete
