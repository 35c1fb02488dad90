"""What came out of a run: figures of the dense and the small network, measured latency, and the report file.

Imports core, criteria, surgery, io, selection, performance and choosing.
"""

from niwaki.performance.activations import peak_activations
from niwaki.performance.measure import Latencies, Latency
from niwaki.report.run import Figures, RunReport

__all__ = ["Figures", "Latencies", "Latency", "RunReport", "peak_activations"]
