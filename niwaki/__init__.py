"""niwaki trains any PyTorch network once and hands back a smaller one that computes the same thing."""

import niwaki.huggingface as _huggingface  # noqa: F401 - registers what it knows of models
from niwaki.choosing import choose
from niwaki.core.plan import Plan
from niwaki.core.reindex import reindex
from niwaki.core.space import SearchSpace
from niwaki.criteria import score
from niwaki.errors import NiwakiError
from niwaki.io import Checkpoints, load, load_optimizer, load_program, save
from niwaki.io.export import export
from niwaki.methods import CRIC, DHSPG, HESSO, HSPG, LHSPG, AdaHSPG, Schedule, Shrinking
from niwaki.performance.measure import latency
from niwaki.repair.batchnorm import reestimate_norms
from niwaki.repair.compensate import compensate
from niwaki.repair.fold import fold_constants
from niwaki.report.latency_profile import latency_profile
from niwaki.search import search_space
from niwaki.selection.budget import Budget
from niwaki.surgery.cut import cut
from niwaki.surgery.optimizer_state import declare_state
from niwaki.surgery.shrink import shrink
from niwaki.surgery.zero import zero_
from niwaki.verify import check
from niwaki.version import __version__

__all__ = [
    "CRIC",
    "DHSPG",
    "HESSO",
    "HSPG",
    "LHSPG",
    "AdaHSPG",
    "Budget",
    "Checkpoints",
    "NiwakiError",
    "Plan",
    "Schedule",
    "SearchSpace",
    "Shrinking",
    "__version__",
    "check",
    "choose",
    "compensate",
    "cut",
    "declare_state",
    "export",
    "fold_constants",
    "latency",
    "latency_profile",
    "load",
    "load_optimizer",
    "load_program",
    "reestimate_norms",
    "reindex",
    "save",
    "score",
    "search_space",
    "shrink",
    "zero_",
]
