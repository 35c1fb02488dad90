"""Implants: units that a plan makes cheaper instead of removing them (Hessian-Aware Pruning, arXiv 2101.08940).

Imports core, program, criteria and selection.
"""

from niwaki.implants.budgeted import choose
from niwaki.implants.hap import hap, implanted
from niwaki.implants.layers import ImplantLayers

__all__ = ["ImplantLayers", "choose", "hap", "implanted"]
