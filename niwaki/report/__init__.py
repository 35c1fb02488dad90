"""Reports: figures of the dense and the small network, latency profiles, drawings, and the report and page of a run.

Called, ``niwaki.report(...)``, it writes a page (`niwaki.report.write.report`).

Imports core, networks, criteria, surgery, io, selection, masks, performance and choosing.
"""

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from niwaki.performance.activations import peak_activations
from niwaki.performance.measure import Latencies, Latency
from niwaki.report.load_run import RunNetwork, load_run
from niwaki.report.mask_bar import MaskBar
from niwaki.report.probe_bar import ProbeBar
from niwaki.report.round_bar import RoundBar
from niwaki.report.run import REPORT_FILE, Baseline, Figures, RunReport, read_report
from niwaki.report.write import PAGE_FILE, report, write_run_page

__all__ = [
    "PAGE_FILE",
    "REPORT_FILE",
    "Baseline",
    "Figures",
    "Latencies",
    "Latency",
    "MaskBar",
    "ProbeBar",
    "RoundBar",
    "RunNetwork",
    "RunReport",
    "load_run",
    "peak_activations",
    "read_report",
    "report",
    "write_run_page",
]


class _Called(ModuleType):
    """This package, which users call as a function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Path:
        return report(*args, **kwargs)


__signature__ = inspect.signature(report)  # for help() and tab completion
sys.modules[__name__].__class__ = _Called
