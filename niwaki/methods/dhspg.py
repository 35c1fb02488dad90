"""DHSPG: dual half-space projected gradient (OTOv2, arXiv 2303.06862, Algorithms 2 and 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from niwaki.core.counts import FloatArray
from niwaki.core.isomorphic import group_of
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.criteria.normalise import Among
from niwaki.criteria.registry import named
from niwaki.errors import MethodError
from niwaki.methods.checks import check_mask, check_number, check_steps, diverged
from niwaki.methods.half_space import HalfSpace, follows_gradient
from niwaki.methods.proximal import dual_penalty, left_half_space
from niwaki.methods.registry import register
from niwaki.methods.schedule import Schedule
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.status import Phase
from niwaki.per_unit.protocol import IterateSums, UnitIterates, UnitUpdate
from niwaki.selection import costs, select
from niwaki.selection.budget import Budget, check_budget

CHECK = 10  # steps between two looks at whether the target is reached


class DHSPG(HalfSpace):
    """DHSPG on any optimizer: the most redundant units are chosen once and driven to zero; the rest trains plainly.

    With x the weights of a unit, d the direction in which the optimizer moves it (without decoupled weight decay), and
    y = x - lr d the weights after its step:

    * redundancy 0.5 c + 0.5 a, from c = cos(x, d), which is large where training shrinks the unit, and a = |g| / ||x||,
      each over its L2 norm (eq. 5), averaged over the ``window`` steps from ``schedule.start``;
    * then the most redundant units form G_p, as many as bring the network ``tolerance`` below the budget. All others
      take the bare optimizer's step from beginning to end, to the bit;
    * on G_p, until the budget is met: trial = y - lr * penalty_g * x / ||x||, and x <- 0 if
      <trial, x> < epsilon * ||x||^2 (eqs. 6 and 7); penalty_g is large enough that ||x|| shrinks and small enough
      that the step still descends along d (eq. 8): penalty where <x, d> >= 0, else ``amplify`` times the least that
      shrinks, between ``penalty`` and ``most`` * penalty, or the middle of the interval if that is past its end;
    * at ``until`` what is left of G_p, smallest first, is set to zero as far as the budget asks for it.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any optimizer that holds all parameters of the space.
        budget: what must hold at the end. ``Budget(units=1 - K / N)`` with ``compare="space"`` is the paper's.
        schedule: ``start`` is the first step of the window; the target must be reached at ``until``. Its periods mean
            nothing here.
        penalty, amplify, most: lambda, its amplification and its cap, in lambdas. By default 1e-3, 2 and 10 for SGD and
            1e-2, 20 and 1e3 for optimizers that normalise the gradient, as published.
        epsilon: how readily units are set to zero, from 0 to below 1.
        tolerance: how much more than the budget asks for G_p may be, as a share of the dense network.
        window: over how many steps the redundancy is averaged (the paper looks at one mini-batch).
        compare: ``"space"`` ranks all units together, as published, and may all but empty a layer; ``"group"`` compares
            units within their groups.
        shrink: True lets units that have reached zero leave the model in place as soon as that pays, so that the rest
            of the training is cheaper; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met, or there is none.
        MethodError: the optimizer does not fit the space, a number makes no sense, or later: the training diverged.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    >>> method = niwaki.DHSPG(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=5, until=40))
    >>> for _ in range(40):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs <= 0.5
    ('done', True)
    """

    name, label = "dhspg", "DHSPG"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        penalty: float | None = None,
        amplify: float | None = None,
        most: float | None = None,
        epsilon: float = 0.9,
        tolerance: float = 0.05,
        window: int = 10,
        compare: Among = "group",
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        usual = (1e-3, 2.0, 10.0) if follows_gradient(optimizer) else (1e-2, 20.0, 1e3)
        self.penalty = usual[0] if penalty is None else penalty
        self.amplify = usual[1] if amplify is None else amplify
        self.most = usual[2] if most is None else most
        check_number("penalty", self.penalty, 0, math.inf, "it weighs the norms of the chosen units against the loss")
        check_number("amplify", self.amplify, 1, math.inf, "it multiplies the least penalty that shrinks a unit")
        check_number("most", self.most, 1, math.inf, "it caps the penalty of a unit, in penalties")
        check_number("epsilon", epsilon, 0, 1, "it is the share of a unit that must be left after a step")
        check_number("tolerance", tolerance, 0, 1, "it is a share of the dense network")
        check_steps("window", window, "redundancy is averaged over it")
        if compare not in ("group", "space"):
            raise MethodError(f"compare={compare!r} is neither 'group' nor 'space': say among which units to rank.")
        check_budget(budget)
        super().__init__(space, optimizer, budget, schedule, vectorised, shrink)
        self.epsilon, self.tolerance, self.compare = float(epsilon), float(tolerance), compare
        self._window = max(1, min(int(window), (schedule.until - schedule.start) // 2))
        self._criteria = [named("cosine"), named("average_magnitude")]  # 1 - c and 1 / a
        self._scores: Tensor | None = None  # [2, num_units], sums of c and a over the window
        self._chosen: BoolArray | None = None  # G_p
        self.attach()

    def phase(self, step: int) -> Phase:
        """Plain training, the window, then the half-space steps."""
        if self._chosen is not None:
            return "half-space"
        return "scoring" if step >= self.schedule.start else "waiting"

    def concerned(self) -> BoolArray:
        """G_p."""
        assert self._chosen is not None
        return self._chosen

    @property
    def reads(self) -> frozenset[str]:
        """Everything before the step, and the direction."""
        return frozenset({"square", "inner", "weighted", "aligned", "direction"})

    def observe(self, step: int) -> None:
        """Add c and a to the window (a is infinite for a unit that is zero); at its end choose G_p."""
        opposed, magnitude = self._units.values(self._criteria, 0)
        scores = torch.stack([1 - opposed, 1 / magnitude])
        self._scores = scores if self._scores is None else self._scores.to(scores) + scores
        if step >= self.schedule.start + self._window - 1:
            self._choose()

    def _choose(self) -> None:
        """G_p: the most redundant units, to ``tolerance`` below the budget."""
        assert self._scores is not None
        cosine, smallness = (self._scores / self._window).double().cpu().numpy()
        if not np.isfinite(cosine).all() or not (smallness > 0).all():
            raise diverged("scores", self.step)
        zero = np.isinf(smallness)  # nothing is more redundant
        smallness = np.where(zero, 0.0, smallness)
        where = group_of(self.space) if self.compare == "group" else np.zeros(self.space.num_units, np.int64)
        redundancy = 0.5 * _over_norm(cosine, where) + 0.5 * _over_norm(smallness, where)
        most = np.full(where.max() + 1, -np.inf)
        np.maximum.at(most, where, redundancy)
        saliency = np.where(zero, 0.0, most[where] - redundancy)
        dense = costs(self.space.cost_model, np.ones(self.space.num_units, dtype=bool), self._limits)
        limits = {measure: max(0.0, limit - self.tolerance * dense[measure]) for measure, limit in self._limits.items()}
        self._chosen = ~select(self.space, saliency, limits, steps=self._steps, compare=self.compare)
        self._scores = None
        self._units.mark(np.zeros_like(zero), np.zeros_like(zero))  # gives the window's memory back

    def of_unit(self, unit: UnitIterates) -> UnitUpdate:
        """The algorithm box, for one unit of G_p."""
        x, y, d, lr, norm = unit.x, unit.y, unit.d, unit.lr, unit.x.norm()
        if norm == 0:
            return UnitUpdate(keep=norm.new_zeros(()), penalty_step=norm.new_zeros(()))
        penalty = norm.new_tensor(self.penalty)
        if x @ d < 0:
            least, largest = -(x @ d) / norm, -(d @ d) * norm / (x @ d)
            penalty = (self.amplify * least).clamp(self.penalty, self.penalty * self.most)
            if penalty >= largest:
                penalty = (least + largest) / 2
        trial = y - lr * penalty * x / norm
        return UnitUpdate(keep=(trial @ x >= self.epsilon * (x @ x)).to(norm), penalty_step=penalty / norm)

    def of_sums(self, sums: IterateSums) -> UnitUpdate:
        """The same for all units of G_p."""
        norm = sums.square.sqrt()
        alive = norm > 0
        penalty = dual_penalty(sums.aligned, norm, sums.direction, self.penalty, self.amplify, self.most)
        pull = torch.where(alive, penalty / norm, 0)
        ends = ~alive | left_half_space(sums.inner - pull * sums.weighted, sums.square, self.epsilon)
        return UnitUpdate(keep=(~ends).to(norm), penalty_step=pull)

    def conclude(self, step: int) -> None:
        """Every few steps: is the target reached?"""
        if (step - self.schedule.start) % CHECK == 0 and self.meets_budget():
            self.end(step)

    def preference(self) -> FloatArray | float:
        """What is left of G_p goes before anything else."""
        return np.where(self._chosen, 1e-6, 1.0) if self._chosen is not None else 1.0

    def marked(self, zero: int) -> int:
        """The units of G_p, until the target is reached."""
        return zero if self._chosen is None or self._ended is not None else int(self._chosen.sum())

    def hyperparameters(self) -> dict[str, Any]:
        """Penalties, epsilon, tolerance, window, and among what units are ranked."""
        return {
            "penalty": float(self.penalty),
            "amplify": float(self.amplify),
            "most": float(self.most),
            "epsilon": self.epsilon,
            "tolerance": self.tolerance,
            "window": self._window,
            "compare": self.compare,
        }

    def state(self) -> dict[str, Any]:
        """What all half-space methods keep, the open window, and G_p."""
        state = super().state()
        if self._scores is not None:
            state["scores"] = self._scores.clone()
        if self._chosen is not None:
            state["chosen"] = torch.from_numpy(self._chosen.copy())
        return state

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        super().restore(state)
        scores, chosen = state.get("scores"), state.get("chosen")
        self._scores = None if scores is None else scores.to(self._device).clone()
        self._chosen = None if chosen is None else chosen.cpu().numpy().copy()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Perhaps another mask, and a window of two rows."""
        super().check_state(state)
        units = self.space.num_units
        if "chosen" in state:
            check_mask("choice", state["chosen"], units)
        if "scores" in state and tuple(state["scores"].shape) != (2, units):
            raise ValueError(f"its window has not the shape {[2, units]}")


register(DHSPG.name, lambda t: DHSPG(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))


def _over_norm(values: FloatArray, where: np.ndarray[tuple[int], np.dtype[np.int64]]) -> FloatArray:
    """``values`` over their L2 norm among those with the same number in ``where``."""
    norms = np.sqrt(np.bincount(where, weights=values**2))
    return np.asarray(values / np.where(norms > 0, norms, 1.0)[where], np.float64)
