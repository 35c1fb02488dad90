"""Arms of `niwaki.prune`: one call at the moment (0: before the first step), then training until the end.

They tell apart what the choice, the repair, scoring again on the way, distillation and a gentler learning rate are
worth once the network is trained on; ``magnitude`` at the same moment is the cut without any of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

import niwaki
from benchmarks.accuracy.setting import Setting
from benchmarks.accuracy.training import Training
from niwaki.criteria.normalise import Compare
from niwaki.post_training.iterative import Repair

_SCORED, _REPAIRED = 8, 24  # batches that scores and the last repair see
_GENTLE = 0.2


@dataclass(frozen=True, slots=True)
class PrunedFirst:
    """``niwaki.prune(method=, rounds=, repair=)``, and training at the share ``rate`` of the recipe's learning rate;
    ``distilled``: the network learns from the dense one, too. Momentum starts from zero."""

    method: str
    rounds: int
    repair: Repair = "none"
    compare: Compare | None = "space"
    distilled: bool = False
    rate: float = 1.0

    def __call__(self, setting: Setting) -> Training:
        run = Training(setting.task, setting.seed)
        run.advance(setting.until)
        dense = copy.deepcopy(run.model).eval()
        batches = run.more_batches(_REPAIRED)
        pruned = niwaki.prune(
            *(dense, setting.task.example(), setting.budget),
            batches=batches[:_SCORED],
            loss_fn=setting.task.loss,
            method=self.method,
            rounds=self.rounds,
            repair=self.repair,
            compare=self.compare,
            repair_batches=batches,
            ignored=setting.task.ignored,
            seed=setting.seed,
        )
        run.finetune(pruned.model, dense if self.distilled else None, self.rate)
        run.widths = tuple(len(units) for units in pruned.plan.kept.values())
        run.advance()
        return run


_DEFAULT = PrunedFirst("surgeon", 4, "compensate")
_TAYLOR = PrunedFirst("taylor1", 1)
_ROUNDS = replace(_TAYLOR, rounds=20)
_MAGNITUDE = PrunedFirst("magnitude", 1, "compensate", compare="group")
PRUNED_FIRST: Mapping[str, PrunedFirst] = {
    "prune": _DEFAULT,
    "prune-unrepaired": replace(_DEFAULT, repair="none"),
    "prune-norms": replace(_DEFAULT, repair="norms"),
    "prune-distilled": replace(_DEFAULT, distilled=True),
    "prune-gentle": replace(_DEFAULT, rate=_GENTLE),
    "prune-distilled-gentle": replace(_DEFAULT, distilled=True, rate=_GENTLE),
    "prune-magnitude-repaired": _MAGNITUDE,
    "prune-magnitude-distilled": replace(_MAGNITUDE, repair="none", distilled=True),
    "prune-taylor": _TAYLOR,
    "prune-taylor-repaired": replace(_TAYLOR, repair="compensate"),
    "prune-taylor-rounds": _ROUNDS,
    "prune-taylor-rounds-repaired": replace(_ROUNDS, repair="compensate"),
    "prune-taylor-rounds-distilled": replace(_ROUNDS, repair="compensate", distilled=True),
}
