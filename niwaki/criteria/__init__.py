"""Criteria: how much the network needs each unit. A new criterion is a function in the file of its family, or a new
file and one line below. Imports core, trace and per_unit.
"""

from niwaki.criteria import absence as absence
from niwaki.criteria import activations as activations
from niwaki.criteria import curvature as curvature
from niwaki.criteria import gradients as gradients
from niwaki.criteria import routed as routed
from niwaki.criteria import trace as trace
from niwaki.criteria import weights as weights
from niwaki.criteria.consensus import consensus as consensus
from niwaki.criteria.normalise import normalise as normalise
from niwaki.criteria.products import ProbeProgress as ProbeProgress
from niwaki.criteria.products import SecondDerivatives as SecondDerivatives
from niwaki.criteria.registry import Criterion as Criterion
from niwaki.criteria.registry import criteria as criteria
from niwaki.criteria.registry import criterion as criterion
from niwaki.criteria.score import Scores as Scores
from niwaki.criteria.score import score as score
