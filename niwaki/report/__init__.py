"""What came out of a run: figures of the dense and the small network, measured latency, and the report file.

Imports torch and nothing else of niwaki but its errors.
"""

from niwaki.report.activations import peak_activations
from niwaki.report.latency import Latency, measure_latency
from niwaki.report.run import Figures, RunReport

__all__ = ["Figures", "Latency", "RunReport", "measure_latency", "peak_activations"]
