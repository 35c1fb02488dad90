"""What came out of a run: figures of the dense and the small network, measured latency, and the report file.

Imports niwaki.core, niwaki.trace and niwaki.graphs.
"""

from niwaki.report.activations import peak_activations
from niwaki.report.run import Figures, RunReport
from niwaki.report.timings import Latencies, Latency

__all__ = ["Figures", "Latencies", "Latency", "RunReport", "peak_activations"]
