"""Reports: figures of the dense and the small network, latency profiles, drawings, and the report file of a run.

Imports core, networks, criteria, surgery, io, selection, masks, performance and choosing.
"""

from niwaki.performance.activations import peak_activations
from niwaki.performance.measure import Latencies, Latency
from niwaki.report.load_run import RunNetwork, load_run
from niwaki.report.mask_bar import MaskBar
from niwaki.report.probe_bar import ProbeBar
from niwaki.report.round_bar import RoundBar
from niwaki.report.run import REPORT_FILE, Baseline, Figures, RunReport, read_report

__all__ = [
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
]
