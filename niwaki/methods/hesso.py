"""HESSO: fade the least salient units to zero while all others train as they would have (arXiv 2409.09085)."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from niwaki.core.counts import FloatArray
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.fades import LINEAR
from niwaki.methods.fading import FADING, GradualPruning
from niwaki.methods.registry import register
from niwaki.methods.schedule import Schedule, Timeline
from niwaki.methods.scoring import WEIGHTS, Criteria
from niwaki.methods.shrinking import ShrinkPolicy
from niwaki.methods.status import Phase
from niwaki.selection.budget import Budget


class HESSO(GradualPruning):
    """HESSO on any optimizer.

    In each period: the units that matter least by a weighted sum of criteria are marked, as many as bring the cost an
    equal share nearer to the budget. Then every unit takes the optimizer's own step, and the marked ones are multiplied
    by (T - t - 1) / (T - t) on step t = 0 ... T - 1 of the period, which fades what they hold linearly to exact zero.
    Zeros stay zero. Unmarked units take the bare optimizer's step, to the bit.

    What differs from the released code: each criterion is averaged over
    ``window`` steps before a selection and divided by its mean in the group; Taylor terms use the gradient; the cosine
    has the sign of DHSPG; selections respect costs, divisibility and the least size of every group.

    Args:
        space: the search space of the model that ``optimizer`` trains.
        optimizer: any ``torch.optim`` optimizer that holds all parameters of the space. None of them may be frozen
            (``requires_grad=False``), since units fade in all of their parameters: pin frozen ones with ``ignored``.
        budget: what must hold after ``schedule.until`` steps.
        schedule: when; see `Schedule`.
        criteria: criteria and their weights; or one function of the space, which returns [num_units] values, the larger
            the more the network needs the unit. Such functions may stand in the mix as well. They are called, without
            gradients, after each step of a window, when weights are new and ``.grad`` is what the step consumed.
        window: over how many steps criteria are averaged before each selection.
        readmit: choose once more in the middle of each period of four steps or more, among all units that are not yet
            zero: one that has begun to fade returns if it would be kept now, by its scores as if it had not faded.
            Off, as in the paper, selections are final.
        seed: for criteria that draw.
        shrink: True lets units that have reached zero leave the model in place as soon as that pays, so that the rest
            of the training is cheaper; see `ShrinkPolicy`.
        vectorised: False runs the plain loop over units, which is the specification.

    Raises:
        BudgetError: the budget cannot be met.
        MethodError: the optimizer does not fit the space, the window or a weight is not a number that makes sense, or
            later: the training diverged before a selection.
        UnknownName: there is no criterion of that name.

    >>> import niwaki, torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> space = niwaki.search_space(model, torch.randn(1, 4))
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> method = niwaki.HESSO(space, optimizer, niwaki.Budget(macs=0.5), niwaki.Schedule(start=2, until=12, periods=2))
    >>> for _ in range(12):
    ...     optimizer.zero_grad()
    ...     model(torch.randn(8, 4)).square().mean().backward()
    ...     optimizer.step()
    >>> method.progress.phase, method.progress.macs
    ('done', 0.5)
    >>> small = niwaki.cut(model, method.plan())
    """

    name, label = "hesso", "HESSO"

    def __init__(
        self,
        space: SearchSpace,
        optimizer: Optimizer,
        budget: Budget,
        schedule: Schedule,
        *,
        criteria: Criteria = WEIGHTS,
        window: int = 10,
        readmit: bool = False,
        seed: int = 0,
        shrink: bool | ShrinkPolicy = False,
        vectorised: bool = True,
    ) -> None:
        super().__init__(space, optimizer, budget, schedule, criteria, window, seed, vectorised, shrink)
        self._timeline = Timeline.of(schedule, int(window))
        if not isinstance(readmit, bool):
            raise MethodError(f"readmit={readmit!r} must be True or False: whether what has begun to fade may return.")
        if readmit and schedule.fade != LINEAR:
            raise MethodError(
                "readmit=True counts what has begun to fade as if it had not, which it can for a linear fade only, not "
                f"for the fade {schedule.fade!r} of the schedule. Leave one of the two out."
            )
        if readmit:
            self.mix.check_size("readmit=True")
        self._readmit = readmit
        self.attach()

    @property
    def timeline(self) -> Timeline:
        """Known from the beginning."""
        return self._timeline

    @property
    def phase(self) -> Phase:
        """What happens on the next step."""
        if self.step >= self._timeline.borders[-1]:
            return "done"
        if self.step >= self._timeline.borders[0]:
            return "fading"
        return "scoring" if self._timeline.scores(self.step + 1) else "waiting"

    def before_step(self, step: int) -> None:
        """Within a window: see that the direction of the step will be known."""
        self.before_fading(step)
        if self.mix.needs_direction and (self._timeline.scores(step) or self._previews(step)):
            self._units.remember()

    def after_step(self, step: int) -> None:
        """One step of the algorithm; the optimizer's own step has just been taken by all units."""
        faded = self._previews(step)
        if faded:
            fading = torch.from_numpy(self._status == FADING).to(self._units.device)
            self.sample(torch.where(fading, faded, 1.0))
        elif self._timeline.scores(step):
            self.sample()
        self.follow(self._timeline)
        if self._readmit and self._timeline.reviews(step):
            self.reselect()

    def _previews(self, step: int) -> float | None:
        return self._timeline.previews(step) if self._readmit else None

    def saliency(self, keep: BoolArray) -> FloatArray:
        """From the mean over the window that ends with this step."""
        return self.weighted(self.scores.close(), keep)

    def group_weight(self) -> None:
        """None matters more than another."""

    def hyperparameters(self) -> dict[str, Any]:
        """Over how many steps scores are averaged, and whether units may return."""
        return {"window": self._timeline.window} | ({"readmit": True} if self._readmit else {})


register(HESSO.name, lambda t: HESSO(t.space, t.optimizer, t.budget, t.schedule, shrink=t.shrink))
