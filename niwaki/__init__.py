"""niwaki prunes a PyTorch network while it trains and returns a smaller network, equal to the trained one."""

import warnings
from typing import Any

import niwaki.huggingface as _huggingface  # noqa: F401 - registers what it knows of models
from niwaki.choosing import choose
from niwaki.core.plan import Plan
from niwaki.core.reindex import reindex
from niwaki.core.space import SearchSpace
from niwaki.criteria import SecondDerivatives, score
from niwaki.errors import NiwakiError
from niwaki.io import Checkpoints, load, load_optimizer, load_program, save
from niwaki.io.export import export
from niwaki.masks.ddp import DDPMasks
from niwaki.methods import (
    ATO,
    ATP,
    CRIC,
    DHSPG,
    H2SPG,
    HESSO,
    HSPG,
    LHSPG,
    AdaHSPG,
    DDPTraining,
    Schedule,
    ShrinkPolicy,
)
from niwaki.performance.measure import latency
from niwaki.post_training import Surgeon, choose_iteratively, distillation, prune, refine
from niwaki.repair.batchnorm import reestimate_norms
from niwaki.repair.compensate import compensate
from niwaki.repair.fold import fold_constants
from niwaki.report.latency_profile import latency_profile
from niwaki.search import search_space
from niwaki.selection.budget import Budget
from niwaki.surgery.cut import cut
from niwaki.surgery.optimizer_state import register_state_layout
from niwaki.surgery.shrink import shrink
from niwaki.surgery.zero import zero_
from niwaki.verify import check
from niwaki.version import __version__

_RENAMED = {"Shrinking": "ShrinkPolicy", "declare_state": "register_state_layout"}


def __getattr__(name: str) -> Any:
    """Names of earlier versions, with a warning that gives the new name."""
    if name not in _RENAMED:
        raise AttributeError(f"module 'niwaki' has no attribute {name!r}")
    warnings.warn(f"niwaki.{name} is called niwaki.{_RENAMED[name]} now.", DeprecationWarning, stacklevel=2)
    return globals()[_RENAMED[name]]


__all__ = [
    "ATO",
    "ATP",
    "CRIC",
    "DHSPG",
    "H2SPG",
    "HESSO",
    "HSPG",
    "LHSPG",
    "AdaHSPG",
    "Budget",
    "Checkpoints",
    "DDPMasks",
    "DDPTraining",
    "NiwakiError",
    "Plan",
    "Schedule",
    "SearchSpace",
    "SecondDerivatives",
    "ShrinkPolicy",
    "Surgeon",
    "__version__",
    "check",
    "choose",
    "choose_iteratively",
    "compensate",
    "cut",
    "distillation",
    "register_state_layout",
    "export",
    "fold_constants",
    "latency",
    "latency_profile",
    "load",
    "load_optimizer",
    "load_program",
    "prune",
    "reestimate_norms",
    "refine",
    "reindex",
    "save",
    "score",
    "search_space",
    "shrink",
    "zero_",
]
