"""One step of a mask generator's training: the task's loss under its gates, and what the gates cost."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError
from niwaki.masks.gate_check import check_gates
from niwaki.masks.protocol import MaskGenerator
from niwaki.per_unit.index import UnitIndex, unit_parameters
from niwaki.per_unit.sums import squares
from niwaki.per_unit.unit_gates import Gates, UnitGates
from niwaki.selection.objective import costs, prices
from niwaki.selection.soft_costs import budget_loss, soft_costs

FLOOR = 0.5
_LEAST = 1e-12
_FUSED = {"cpu", "cuda"}  # where torch steps all parameters in one call, for a third of the time if they are small
LOWERED = 0.6  # of its time: when the limits have come down
LATE, NEAR = 0.75, 0.004  # from this share of its time on only the budget counts; so near it, in dense networks, is met


@dataclass(frozen=True, slots=True)
class MaskStep:
    """What a step found before it moved: the ``loss`` of the task under the drawn gates, None if it did not look, and
    how far the mask without noise is from what the ``budget`` is by then, as log(max(a, b) / min(a, b))."""

    loss: float | None
    budget: float


class MaskTraining:
    """Trains ``generator`` so that the task's loss is small under its gates and their cost meets ``limits``:

        loss(model under gates with noise) + budget_weight * R(cost of the gates without noise)

    R is `niwaki.selection.soft_costs.budget_loss`. The cost is that of the mask without noise, which is the one that
    is used in the end: with half of the gates undecided, the two cost the same only by chance.

    Up to 60 % of its time the limits come down from the cost of the dense network in a straight line: what leaves is
    decided unit by unit while the network learns, and not by the first few batches.

    No group keeps less than ``floor`` times the share that all groups would keep if they met the limits evenly. Early
    in a training the loss tells little, and prices alone would empty the groups whose units cost most, for good: from
    far below the threshold no gradient leads back.
    """

    def __init__(
        self,
        space: SearchSpace,
        generator: MaskGenerator,
        limits: Mapping[str, float],
        steps: int,
        *,
        budget_weight: float = 4.0,
        lr: float | None = None,
        weight_decay: float = 1e-2,
        floor: float = FLOOR,
        seed: int = 0,
        gates: Gates | None = None,
    ) -> None:
        self.generator: MaskGenerator = generator
        self.gates: Gates = UnitGates(space) if gates is None else gates
        generator.protect(floor * even_share(space, limits))
        self._space, self._limits, self._weight = space, dict(limits), budget_weight
        self._dense = costs(space.cost_model, np.ones(space.num_units, dtype=bool), tuple(limits))
        self._rate = generator.travel / steps if lr is None else lr
        self._noise = torch.Generator().manual_seed(seed)
        own = list(generator.parameters())
        fused = all(parameter.device.type in _FUSED for parameter in own)
        self.optimizer = torch.optim.AdamW(
            own, lr=self._rate, weight_decay=weight_decay, betas=(0.9, 0.99), fused=fused
        )

    def check(self, function: Callable[[nn.Module], Any]) -> None:
        """Look whether masks can be learnt from ``function(model)``, the loss of some batch, without any step.

        Raises:
            MethodError: the loss is not a finite scalar, does not depend on the gates, or is another one under a mask
                than without the units that it masks.
        """
        check_teaches(self._space, self.gates, function)

    def looks(self, progress: float) -> bool:
        """Whether the step at the share ``progress`` of all steps looks at the loss: in the last quarter only the
        budget counts."""
        return progress < LATE

    def step(self, function: Callable[[nn.Module], Any], progress: float) -> MaskStep:
        """One step on ``function(model)``, the loss of some batch, at the share ``progress`` of all steps (0 to 1),
        along which the learning rate falls to a twentieth. The model and its gradients are not touched. In the last
        quarter the function is not called, and a mask that meets the budget to 0.4 % of the dense network is left as
        it is.

        Raises:
            MethodError: the loss is not a finite scalar, or does not depend on the gates. Nothing has changed then.
        """
        if not self.looks(progress):
            return self.settle(progress)
        self._set_rate(progress)
        noise = self._noise.get_state()
        try:
            return self._learn(function, progress)
        except BaseException:
            self._noise.set_state(noise)
            raise

    def _learn(self, function: Callable[[nn.Module], Any], progress: float) -> MaskStep:
        """With the loss, whose gradient by the gates is never longer than that of the budget."""
        limits = self._limits_at(progress)
        with torch.enable_grad():
            scores = self.generator.scores()
            drawn, plain = (self.generator.gates_of(scores, noise) for noise in (self._noise, None))
            loss, gradient = self.gates.gradient(drawn.hard, function)
            gradient = over_processes(checked(loss, gradient))
            budget = self._weight * budget_loss(self._space.cost_model, plain.hard, limits)
            (price,) = torch.autograd.grad(budget, plain.hard, retain_graph=True)
            gradient = gradient * (price.norm() / gradient.norm().clamp(min=1e-30) * (1 - progress / LATE)).clamp(max=1)
            self.optimizer.zero_grad()
            torch.autograd.backward([drawn.hard, plain.hard], [gradient, price])
        self.optimizer.step()
        if self.generator.looks:
            units = sum(self.generator.sizes)
            self.generator.observe(gradient[:units].detach(), unit_norms(self._space)[:units])
        return MaskStep(float(loss), float(budget.detach()) / self._weight)

    def _limits_at(self, progress: float) -> dict[str, float]:
        share = min(1.0, progress / LOWERED)
        return {measure: self._dense[measure] * (1 - share) + share * limit for measure, limit in self._limits.items()}

    def _set_rate(self, progress: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * (0.05 + 0.95 * (1 - progress))

    def settle(self, progress: float) -> MaskStep:
        """A step without the loss: towards the budget, by units that do not reach beyond it."""
        self._set_rate(progress)
        with torch.enable_grad():
            plain = self.generator.gates()
            budget = self._weight * budget_loss(self._space.cost_model, plain.hard, self._limits)
            (price,) = torch.autograd.grad(budget, plain.hard, retain_graph=True)
            fitting = self._fitting(plain.hard.detach())
            if fitting is not None:
                self.optimizer.zero_grad()
                torch.autograd.backward([plain.hard], [price * fitting])
        if fitting is not None:
            self.optimizer.step()
        return MaskStep(None, float(budget.detach()) / self._weight)

    def _fitting(self, hard: Tensor) -> Tensor | None:
        """The units [num_units] that would not take the mask from one side of the budget to the other, were they alone
        to change; all of them if there is no such unit, and None where the budget is met.

        A unit of the first layers may cost two percent of a network. It would cross the threshold again and again, back
        and forth, with nobody else moving: each of its two gradients undoes the other's.
        """
        model, gates = self._space.cost_model, hard.double().cpu().numpy()
        reached = costs(model, gates > 0.5, tuple(self._limits))
        measure = max(self._limits, key=lambda name: reached[name] / max(self._limits[name], _LEAST))
        off, near = reached[measure] - self._limits[measure], NEAR * self._dense[measure]
        if abs(off) <= near:
            return None
        price = prices(model, gates > 0.5, [measure])[measure]
        fits = (price > 0) & (price <= abs(off) + near)
        moves = (gates > 0.5) if off > 0 else (gates <= 0.5)
        if not (fits & moves & ~self.generator.protected().cpu().numpy()).any():
            fits[:] = True
        return torch.from_numpy(fits).to(hard)

    def state(self) -> dict[str, Any]:
        """The generator, its optimizer, and the state of the noise: tensors and plain numbers."""
        return {
            "generator": {name: value.clone() for name, value in self.generator.state_dict().items()},
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "noise": self._noise.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from `state`."""
        self.generator.load_state_dict(state["generator"])
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._noise.set_state(state["noise"].cpu())

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `ValueError`, `KeyError` or `TypeError` if ``state`` is not what `state` gives; change nothing."""
        if not isinstance(state, Mapping):
            raise ValueError("the state of its controller is not one")
        here = {name: value.shape for name, value in self.generator.state_dict().items()}
        if {name: value.shape for name, value in state["generator"].items()} != here:
            raise ValueError("its mask generator is another one")
        torch.Generator().set_state(state["noise"].cpu())
        if len(state["optimizer"]["param_groups"][0]["params"]) != len(list(self.generator.parameters())):
            raise ValueError("the optimizer of its mask generator is that of another one")


def even_share(space: SearchSpace, limits: Mapping[str, float]) -> float:
    """The largest share of the units of every group that meets ``limits``, if units could be divided.

    >>> import niwaki
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 2))
    >>> round(even_share(niwaki.search_space(model, torch.randn(1, 4)), {"macs": 15.0}), 6)
    0.25
    """
    widths = sum(group.units for group in space.width_groups)
    low, high = 0.0, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        gates = torch.ones(space.num_units, dtype=torch.float64)
        gates[:widths] = middle
        met = (
            soft_costs(space.cost_model, gates, tuple(limits))
            <= torch.tensor(list(limits.values()), dtype=torch.float64)
        ).all()
        low, high = (middle, high) if met else (low, middle)
    return low


def checked(loss: Any, gradient: Tensor | None) -> Tensor:
    """The gradient of a ``loss`` by gates.

    Raises:
        MethodError: the loss is not a finite scalar, or does not depend on the gates.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"a {type(loss).__qualname__}"
        raise MethodError(f"loss_fn must return the scalar loss of a batch, but returned {what}. Return its mean.")
    if not bool(torch.isfinite(loss)):
        raise MethodError(
            f"The loss of a batch under a mask is {loss.item()}, so no mask can be learnt from it. Look for non-finite "
            "data or a diverged model."
        )
    if gradient is None:
        raise MethodError(
            "The loss that loss_fn returned does not depend on any unit of the search space, so no mask can be learnt "
            "from it. Compute it from the model passed to loss_fn, without torch.no_grad() and without .item()."
        )
    return gradient


def check_teaches(space: SearchSpace, gates: Gates, function: Callable[[nn.Module], Any]) -> None:
    """Look whether masks can be learnt from ``function(model)``, the loss of some batch.

    Raises:
        MethodError: the loss is not a finite scalar, does not depend on the gates, or is another one under a mask than
            without the units that it masks.
    """
    everything = torch.ones(space.num_units, device=next(space.model.parameters()).device)
    checked(*gates.gradient(everything, function))
    check_gates(space, gates, function)


def unit_norms(space: SearchSpace) -> Tensor:
    """The norm of the weights that make each unit, [num_units]."""
    parameters = unit_parameters(space)
    index = UnitIndex.of(space, parameters)
    rows = [
        part
        for bundle in index.bundles
        for part in squares(bundle.join([parameters[name].detach() for name in bundle.names]), bundle.dims)
    ]
    return index.total({"square": rows})["square"].sqrt()


def over_processes(gradient: Tensor) -> Tensor:
    """The mean over the processes of a distributed training, each of which has looked at a batch of its own: all of
    them take the same step, so that their masks stay the same."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return gradient
    total = gradient.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()
