"""Implants: units that a plan makes cheaper instead of removing them (Hessian-Aware Pruning, arXiv 2101.08940), and
experts that become constants.

Imports core, trace, program, criteria, surgery, repair and selection.
"""

from niwaki.implants.budgeted import choose
from niwaki.implants.constants import constant_experts
from niwaki.implants.hap import hap, implanted
from niwaki.implants.layers import ImplantLayers
from niwaki.implants.starting import fitted, zero_implants

__all__ = ["ImplantLayers", "choose", "constant_experts", "fitted", "hap", "implanted", "zero_implants"]
