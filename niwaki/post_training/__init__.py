"""Prune a network that is trained already: choose in rounds, repair what is left, and learn from the dense network.

Imports core, trace, criteria, surgery, repair, selection, implants, search and choosing.
"""

from niwaki.post_training.distillation import distillation
from niwaki.post_training.explained import CaP
from niwaki.post_training.hessian_aware import HAP
from niwaki.post_training.iterative import choose_iteratively
from niwaki.post_training.prune import prune
from niwaki.post_training.refine import refine
from niwaki.post_training.surgeon import Surgeon

__all__ = ["HAP", "CaP", "Surgeon", "choose_iteratively", "distillation", "prune", "refine"]
