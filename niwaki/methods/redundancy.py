"""The choice of DHSPG and H2SPG: the most redundant units, by how training moves them and how small they are (OTOv2,
eq. 5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from torch import Tensor

from niwaki.core.counts import FloatArray
from niwaki.core.dying import structure_units
from niwaki.core.space import BoolArray
from niwaki.criteria.normalise import Compare, peers_of
from niwaki.criteria.registry import named
from niwaki.criteria.terms import EFFECTS, worth_by_effect
from niwaki.methods.checks import check_mask, diverged
from niwaki.methods.parts import Target
from niwaki.methods.schedule import Schedule
from niwaki.methods.trained_units import TrainedUnits
from niwaki.methods.vanishing import Choice
from niwaki.selection import STRUCTURES, SelectionRequest, costs, mixed, prices

CHECK = 10  # steps between two looks at whether the target is reached


@final
class MostRedundant(Choice):
    """G_p: as many of the most redundant units as bring the network ``tolerance`` below the budget.

    Their redundancy is 0.5 c + 0.5 a, from c = cos(x, d) and a = |g| / ||x||, each over its L2 norm, averaged over
    ``window`` steps from ``schedule.start``. Of structures, x is all that dies with them, and a = sqrt(|g|) / ||x||,
    which does not grow with their size; what nothing but a gate makes has no redundancy, and is worth what its effect
    on the loss says, see `niwaki.criteria.terms`. ``compare``: among which units they are ranked. ``memory``: the share
    w of an average s <- w s + (1 - w) s_t that goes on forgetting; 0 for the mean.
    """

    def __init__(
        self,
        units: TrainedUnits,
        target: Target,
        schedule: Schedule,
        tolerance: float,
        window: int,
        compare: Compare,
        memory: float = 0.0,
    ) -> None:
        self._memory = memory
        self._units, self._target, self._schedule = units, target, schedule
        self._tolerance, self._compare = tolerance, compare
        self._window = max(1, min(window, (schedule.until - schedule.start) // 2))
        effects = () if units.gated is None else EFFECTS
        self._criteria = [named(name) for name in ("cosine", "average_magnitude", *effects)]  # 1 - c and 1 / a
        self._scores: Tensor | None = None  # [criteria, num_units], sums of c, a and effects over the window
        self.units: BoolArray | None = None

    def scores(self, step: int) -> bool:
        """In the window."""
        return self.units is None and step >= self._schedule.start

    def observe(self, step: int) -> None:
        """Add c and a to the window (a is infinite for a unit that is zero); at its end choose G_p."""
        found, uses = self._units.engine.values(self._criteria, 0), self._units.engine.uses
        opposed, magnitude = found[:2] / uses
        scores = torch.cat([torch.stack([1 - opposed, 1 / magnitude]), found[2:]])
        if self._scores is not None and self._memory:
            self._scores = self._memory * self._scores.to(scores) + (1 - self._memory) * scores
        else:
            self._scores = scores if self._scores is None else self._scores.to(scores) + scores
        if step >= self._schedule.start + self._window - 1:
            self._choose(step, self._scores)

    def _choose(self, step: int, scores: Tensor) -> None:
        """G_p, from the sums [criteria, num_units] over the window."""
        space, target = self._units.space, self._target
        cosine, smallness, *effects = (scores if self._memory else scores / self._window).double().cpu().numpy()
        if not np.isfinite([cosine, *effects]).all() or not (smallness > 0).all():
            raise diverged("scores", step)
        zero = np.isinf(smallness)  # nothing is more redundant
        smallness = np.where(zero, 0.0, smallness)
        can, gated = target.removal.candidates(space), self._units.gated
        can = can if gated is None else can & ~gated
        where = np.where(can, peers_of(space, self._compare), -1) + 1  # what cannot leave is compared with nothing else
        redundancy = 0.5 * _over_norm(cosine, where) + 0.5 * _over_norm(smallness, where)
        most = np.full(where.max() + 1, -np.inf)
        np.maximum.at(most, where, redundancy)
        saliency = np.where(zero, 0.0, most[where] - redundancy)
        everything = np.ones(space.num_units, dtype=bool)
        dense = costs(space.cost_model, everything, target.limits)
        whole = list(structure_units(space).values())
        if whole and target.removal is STRUCTURES:  # by redundancy alone: they are worth more if they cost more
            saliency[whole] *= mixed(prices(space.cost_model, everything, target.limits), dense, target.limits)[whole]
        elif whole:  # per use of a weight
            saliency *= self._units.engine.uses.double().cpu().numpy()
        if gated is not None:
            saliency = worth_by_effect(space, saliency, np.array(effects), gated, everything)
        limits = {m: max(0.0, limit - self._tolerance * dense[m]) for m, limit in target.limits.items()}
        self.units = ~target.removal.select(
            space, saliency, SelectionRequest(limits, steps=target.steps, compare=self._compare)
        )
        self._scores = None
        self._units.engine.forget()

    def chosen(self, step: int) -> BoolArray | None:
        """G_p, once it is known."""
        return self.units

    def marked(self) -> int | None:
        """The units of G_p."""
        return None if self.units is None else int(self.units.sum())

    def may_end(self, step: int) -> bool:
        """Every few steps it is looked whether the target is reached."""
        return (step - self._schedule.start) % CHECK == 0

    def preference(self) -> FloatArray | float:
        """What is left of G_p goes before anything else."""
        return 1.0 if self.units is None else np.where(self.units, 1e-6, 1.0)

    def settings(self) -> dict[str, Any]:
        """Tolerance, window, and among what units are ranked."""
        memory = {"memory": self._memory} if self._memory else {}
        return {"tolerance": self._tolerance, "window": self._window, "compare": self._compare, **memory}

    def state(self) -> dict[str, Any]:
        """The open window, or G_p."""
        scores = {} if self._scores is None else {"scores": self._scores.clone()}
        return scores if self.units is None else scores | {"chosen": torch.from_numpy(self.units.copy())}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        scores, chosen = state.get("scores"), state.get("chosen")
        self._scores = None if scores is None else scores.to(self._units.device).clone()
        self.units = None if chosen is None else chosen.cpu().numpy().copy()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Perhaps a mask, and a window of one row per criterion."""
        units = self._units.space.num_units
        if "chosen" in state:
            check_mask("choice", state["chosen"], units)
        if "scores" in state and tuple(state["scores"].shape) != (len(self._criteria), units):
            raise ValueError(f"its window has not the shape {[len(self._criteria), units]}")


def _over_norm(values: FloatArray, where: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FloatArray:
    """``values`` over their L2 norm among those with the same number in ``where``."""
    norms = np.sqrt(np.bincount(where, weights=values**2))
    return np.asarray(values / np.where(norms > 0, norms, 1.0)[where], np.float64)
