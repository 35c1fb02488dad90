"""Deterministic masks: latents that are trained without chance until a budget is met, and then only as scales."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from niwaki.core.counts import BoolArray, FloatArray
from niwaki.core.space import SearchSpace
from niwaki.masks.divergence import Pick, divergence, recorded
from niwaki.masks.latents import Latents
from niwaki.masks.training import FLOOR, check_teaches, checked, even_share, over_processes
from niwaki.per_unit.unit_gates import UnitGates
from niwaki.selection.soft_costs import soft_costs

FREEZE, RAMP = 0.75, 0.5  # shares of all steps: the mask is decided after; and of these, those that lower the limit
ASCENT, QUADRATIC, DECIDED = 9.0, 10.0, 0.3  # how far the price rises in all, per excess; l2; l3 in the end
LEAST = 0.1  # of the scale of a unit that is decided to stay
MEMORY = 0.9  # of the average of the size of gradients
LAST_RATE = 0.05
_TIE = 1e-3


@final
class DeterministicTraining:
    """Trains ``latents`` so that the task's loss is small under their scales and their cost meets ``limits``:

        loss(masked) + divergence KL(dense || masked) + l1 (c - b) + l2 (c - b)^2 + l3 mean s (1 - s)

    (arXiv 2603.08065.) c is the cost of the retentions s, b the limit, as shares of the dense network; of several
    limits those that are exceeded are added, and if none is, the nearest counts. l1 rises by gradient ascent, l2 is
    fixed, l3 rises linearly. All three are in units of the task: the mean size of its gradient over that of the cost's,
    so that the scale of a loss does not matter. In the first half of the time b falls from the first cost to the limit,
    without which l1 would rise far too high.

    `freeze` ends that: the mask stays from then on, and only the scales of its units go on.

    A step runs the network twice, once without gradients, and once if ``divergence`` is 0.
    """

    def __init__(
        self,
        space: SearchSpace,
        latents: Latents,
        limits: Mapping[str, float],
        steps: int,
        *,
        weight: float = 2.0,
        pick: Pick | None = None,
        lr: float | None = None,
    ) -> None:
        self.latents, self.gates = latents, UnitGates(space)
        latents.protect(FLOOR * even_share(space, limits))
        self._space, self._limits, self._weight, self._pick = space, dict(limits), weight, pick
        self._rate, self._ascent = latents.travel / steps if lr is None else lr, ASCENT / steps
        self.optimizer = torch.optim.Adam(latents.parameters(), lr=self._rate, betas=(0.9, 0.99))
        self._price, self._size = 0.0, 0.0
        self._first: Tensor | None = None  # the cost before the first step
        self._keep: Tensor | None = None
        self._limit = torch.tensor(list(self._limits.values()), dtype=torch.float64)
        self._dense = self._cost(torch.ones(space.num_units, dtype=torch.float64))

    @property
    def frozen(self) -> bool:
        """Whether the mask is decided."""
        return self._keep is not None

    def check(self, function: Callable[[nn.Module], Any]) -> None:
        """Look whether masks can be learnt from ``function(model)``, the loss of some batch, without any step.

        Raises:
            MethodError: the loss is not a finite scalar, does not depend on the gates, or is another one under a mask
                than without the units that it masks.
        """
        check_teaches(self._space, self.gates, function)

    def gate_values(self) -> Tensor:
        """What units are multiplied by now, [num_units]: their scales, or 0 where they are decided to leave."""
        scales = self.latents.scales().detach()
        return scales if self._keep is None else scales * self._keep

    def worth(self) -> FloatArray:
        """What each unit is worth in a choice, [num_units]: its retention, and its scale where that is equal."""
        with torch.no_grad():
            found = self.latents.retentions() + _TIE * self.latents.scales()
        worth: FloatArray = found.double().cpu().numpy()
        return worth

    def step(self, function: Callable[[nn.Module], Any], progress: float) -> tuple[float, float]:
        """One step on ``function(model)``, the loss of some batch, at the share ``progress`` of all steps (0 to 1),
        along which the learning rate falls to a twentieth. The model and its gradients are not touched.

        Returns the loss of the masked network, and how far its cost is above the limit of the moment, as a share of the
        dense network.

        Raises:
            MethodError: the loss is not a finite scalar, does not depend on the gates, or the outputs of the model
                cannot be compared. Nothing has changed then.
        """
        with torch.enable_grad():
            loss, task = self._of_task(function)
        return loss, self.learn(task, progress, progress / FREEZE)

    def learn(self, task: Tensor, progress: float, decided: float) -> float:
        """A step on ``task`` [num_units], the gradient of the task's loss by `gate_values`, at the share ``progress``
        of all steps and the share ``decided`` of those before the mask is decided. Returns how far the cost is above
        the limit of the moment."""
        task = task[: len(self.latents.values)].to(self.latents.values)
        with torch.enable_grad():
            self.latents.move(decided)
            off, price = (0.0, torch.zeros_like(task)) if self.frozen else self._of_budget(task, decided)
        self.latents.values.grad = task + price
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * (LAST_RATE + (1 - LAST_RATE) * (1 - progress))
        self.optimizer.step()
        self.latents.project(LEAST if self.frozen else 0.0)
        return off

    def freeze(self, keep: BoolArray) -> None:
        """Decide that the units ``keep`` [num_units] stay, and no others."""
        self._keep = torch.from_numpy(keep).to(self.latents.values)
        self.latents.project(LEAST)

    def _of_task(self, function: Callable[[nn.Module], Any]) -> tuple[float, Tensor]:
        """The loss of the masked network, and its gradient by what units are multiplied by, [num_units]."""
        dense: list[Any] = []
        if self._weight:
            with torch.no_grad(), recorded(self._space.model) as dense:
                function(self._space.model)
        own: list[Any] = []

        def whole(model: nn.Module) -> Any:
            with recorded(model) as masked:
                own.append(function(model))
            if not self._weight or not isinstance(own[-1], Tensor):
                return own[-1]
            return own[-1] + self._weight * divergence(dense, masked, self._pick).to(own[-1])

        total, gradient = self.gates.gradient(self.gate_values(), whole)
        gradient = over_processes(checked(total, gradient))
        return float(own[-1].detach()), gradient if self._keep is None else gradient * self._keep

    def _of_budget(self, task: Tensor, progress: float) -> tuple[float, Tensor]:
        """How far the cost is from the limit, as a share of the dense network, and what that and undecided units push
        the latents with, [sum(sizes)]."""
        values, s = self.latents.values, self.latents.retentions()
        cost = self._cost(s)
        self._first = cost.detach() if self._first is None else self._first
        limit = self._limit + max(0.0, 1 - progress / RAMP) * (self._first - self._limit).clamp(min=0)
        excess = (cost - limit) / self._dense
        gap = excess.clamp(min=0).sum() + excess.max().clamp(max=0)
        (slope,) = torch.autograd.grad(gap, values, retain_graph=True)
        (undecided,) = torch.autograd.grad((s * (1 - s)).mean(), values)
        off = float(gap.detach())
        size = float(task.abs().sum() / slope.abs().sum().clamp(min=1e-30))
        self._size = MEMORY * self._size + (1 - MEMORY) * size if self._size else size
        self._price = max(0.0, self._price + self._ascent * off)
        push = (self._price + 2 * QUADRATIC * off) * slope + DECIDED * progress * undecided
        return off, self._size * push

    def _cost(self, gates: Tensor) -> Tensor:
        return soft_costs(self._space.cost_model, gates, tuple(self._limits))

    def state(self) -> dict[str, Any]:
        """The latents, their optimizer, the prices and the mask: tensors and plain numbers."""
        return {
            "latents": {name: value.clone() for name, value in self.latents.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "price": self._price,
            "size": self._size,
            "first": None if self._first is None else self._first.clone(),
            "keep": None if self._keep is None else self._keep.clone(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.latents.load_state_dict(state["latents"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._price, self._size = float(state["price"]), float(state["size"])
        self._first = None if state["first"] is None else state["first"].cpu().clone()
        self._keep = None if state["keep"] is None else state["keep"].to(self.latents.values).clone()

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` if ``state`` is not what `state` gives; change nothing."""
        if not isinstance(state, Mapping):
            raise ValueError("the state of its latents is not one")
        here = {name: value.shape for name, value in self.latents.state_dict().items()}
        if {name: value.shape for name, value in state["latents"].items()} != here:
            raise ValueError("its latents are those of another search space")
        if state["keep"] is not None and tuple(state["keep"].shape) != (self._space.num_units,):
            raise ValueError("its mask is not one number per unit")
        if not float(state["size"]) >= 0 or len(state["optimizer"]["param_groups"]) != 1:
            raise ValueError("its prices, or the optimizer of its latents, are not what they should be")
        if state["first"] is not None and tuple(state["first"].shape) != tuple(self._limit.shape):
            raise ValueError("its first cost is not that of these limits")
        float(state["price"])
