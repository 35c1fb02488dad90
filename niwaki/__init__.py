"""niwaki prunes a PyTorch network while it trains and returns a smaller network, equal to the trained one."""

import importlib
import importlib.util
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from niwaki.core.announced import announce
from niwaki.version import __version__

if TYPE_CHECKING:
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
        GaP,
        GReg1,
        GReg2,
        Schedule,
        ShrinkPolicy,
        WeightMom,
    )
    from niwaki.performance.measure import latency
    from niwaki.performance.timed import timed
    from niwaki.post_training.distillation import distillation
    from niwaki.post_training.explained import CaP
    from niwaki.post_training.hessian_aware import HAP
    from niwaki.post_training.iterative import choose_iteratively
    from niwaki.post_training.prune import prune
    from niwaki.post_training.refine import refine
    from niwaki.post_training.surgeon import Surgeon
    from niwaki.repair.batchnorm import reestimate_norms
    from niwaki.repair.compensate import compensate
    from niwaki.repair.fold import fold_constants
    from niwaki.report.latency_profile import latency_profile
    from niwaki.report.load_run import load_run
    from niwaki.report.write import report
    from niwaki.search import search_space
    from niwaki.selection.budget import Budget
    from niwaki.surgery.cut import cut
    from niwaki.surgery.optimizer_state import register_state_layout
    from niwaki.surgery.shrink import shrink
    from niwaki.surgery.zero import zero_
    from niwaki.verify import check

# Where the public names live. Each is imported when it is asked for: `import niwaki` and `niwaki --help` need no torch.
_HOMES: Mapping[str, str] = {
    "choosing": "choose",
    "core.plan": "Plan",
    "core.reindex": "reindex",
    "core.space": "SearchSpace",
    "criteria": "SecondDerivatives score",
    "errors": "NiwakiError",
    "io": "Checkpoints load load_optimizer load_program save",
    "io.export": "export",
    "masks.ddp": "DDPMasks",
    "methods": "ATO ATP CRIC DHSPG H2SPG HESSO HSPG LHSPG AdaHSPG DDPTraining GaP GReg1 GReg2 Schedule ShrinkPolicy "
    "WeightMom",
    "performance.measure": "latency",
    "performance.timed": "timed",
    "post_training.distillation": "distillation",
    "post_training.explained": "CaP",
    "post_training.hessian_aware": "HAP",
    "post_training.iterative": "choose_iteratively",
    "post_training.prune": "prune",
    "post_training.refine": "refine",
    "post_training.surgeon": "Surgeon",
    "repair.batchnorm": "reestimate_norms",
    "repair.compensate": "compensate",
    "repair.fold": "fold_constants",
    "report.latency_profile": "latency_profile",
    "report.load_run": "load_run",
    "report.write": "report",
    "search": "search_space",
    "selection.budget": "Budget",
    "surgery.cut": "cut",
    "surgery.optimizer_state": "register_state_layout",
    "surgery.shrink": "shrink",
    "surgery.zero": "zero_",
    "verify": "check",
}
_HOME_OF = {name: f"niwaki.{module}" for module, names in _HOMES.items() for name in names.split()}
_ROOMS = ("huggingface", "implants", "integrations", "testing", "unions")  # packages with public names of their own
_RENAMED = {"Shrinking": "ShrinkPolicy", "declare_state": "register_state_layout"}

announce("niwaki.huggingface")  # it registers what it knows of models


def __getattr__(name: str) -> Any:
    """Public names and packages, imported when they are asked for; names of earlier versions, with a warning that gives
    the new name."""
    if name in _HOME_OF:
        module = importlib.import_module(_HOME_OF[name])
        # `niwaki.report` is in place by now: the package, which can be called.
        return globals().setdefault(name, getattr(module, name))
    if name in _RENAMED:
        warnings.warn(f"niwaki.{name} is called niwaki.{_RENAMED[name]} now.", DeprecationWarning, stacklevel=2)
        return __getattr__(_RENAMED[name])
    if name.isidentifier() and not name.startswith("_") and importlib.util.find_spec(f"niwaki.{name}") is not None:
        return importlib.import_module(f"niwaki.{name}")
    raise AttributeError(f"module 'niwaki' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names, and the packages that have some, for tab completion."""
    return sorted([*__all__, *_ROOMS])


__all__ = [
    "ATO",
    "ATP",
    "CRIC",
    "DHSPG",
    "H2SPG",
    "HAP",
    "HESSO",
    "HSPG",
    "LHSPG",
    "AdaHSPG",
    "Budget",
    "CaP",
    "Checkpoints",
    "DDPMasks",
    "DDPTraining",
    "GaP",
    "GReg1",
    "GReg2",
    "NiwakiError",
    "Plan",
    "Schedule",
    "SearchSpace",
    "SecondDerivatives",
    "ShrinkPolicy",
    "Surgeon",
    "WeightMom",
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
    "load_run",
    "prune",
    "reestimate_norms",
    "refine",
    "reindex",
    "report",
    "save",
    "score",
    "search_space",
    "shrink",
    "timed",
    "zero_",
]
