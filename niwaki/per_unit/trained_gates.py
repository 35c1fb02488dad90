"""Gates of terms without parameters while an optimizer trains the rest, and their slopes as it sees gradients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import final

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from niwaki.core.names import named_modules
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.per_unit.backward_passes import BackwardPasses
from niwaki.per_unit.gates import TermGates

_WITNESSES = 4  # small parameters, some of which a backward pass may not reach


@final
class TrainedGates:
    """`TermGates` around the steps of ``optimizer``, which does not hold them.

    What happens to gradients between the backward pass and the step (a scaler's factor, clipping, the mean over the
    processes of a distributed training) happens to those of parameters only. A few small parameters tell what it was:
    their gradients are kept as the backward pass left them, and compared after the step.

    ``structures``: those with a gate, by number; ``unit``: their units; ``alone`` [num_units]: those units that nothing
    but a gate makes.
    """

    def __init__(self, space: SearchSpace, structures: Sequence[int], optimizer: Optimizer) -> None:
        self._space, self._optimizer = space, optimizer
        self._gates = TermGates(space, structures)
        self._modules = dict(named_modules(space.model))
        first = {group.structure: group.first for group in space.groups if group.structure is not None}
        self.structures = self._gates.structures
        self.unit = [first[number] for number in self.structures]
        self.alone: BoolArray = np.zeros(space.num_units, dtype=bool)
        bare = [space.structures[number].bare for number in self.structures]
        self.alone[[unit for unit, only in zip(self.unit, bare, strict=True) if only]] = True
        witnesses = _smallest(optimizer)
        home = witnesses[0].device if witnesses else self.values.device
        self._gates.values.data = self._gates.values.data.to(home)
        self._passes = BackwardPasses(self._gates.values, witnesses)
        self._now: Tensor | None = None
        self._attached = False

    @property
    def values(self) -> Tensor:
        """What is left of each term, [gates], from 1 to 0."""
        return self._gates.values.detach()

    def is_alone(self, place: int) -> bool:
        """Whether nothing but the gate at this place makes its unit."""
        return bool(self.alone[self.unit[place]])

    def attach(self) -> None:
        """Let them multiply their terms in the model of the space, in the modules that it had when this was made."""
        self._gates.attach_to(self._modules)
        self._gates.values.requires_grad_()  # which `settle` has taken from them
        self._passes.attach()
        self._attached = True

    def detach(self) -> None:
        """Leave the model as it was before, whatever the values."""
        self._gates.detach()
        self._passes.detach()
        self._attached, self._now = False, None

    def settle(self) -> None:
        """Nothing changes any more: what is closed stays so, and all else is as if there had never been a gate."""
        if self._attached:
            self.detach()
            closed = [place for place, one in enumerate(self.values.tolist()) if one != 1]
            self._gates.values.requires_grad_(False)
            self._gates.attach_to(self._modules, closed)

    def let_go(self, label: str) -> None:
        """`detach`, with a warning where terms that are not whole count in full again then."""
        left = zip(self._gates.names, self.values.tolist(), strict=True)
        faded = [name for name, value in left if value != 1]
        self.detach()
        if faded:
            warnings.warn(
                f"{label} has faded {len(faded)} terms that no parameters make ({', '.join(faded[:3])}"
                f"{' and others' * (len(faded) > 3)}). Without the method they count in full again, so that the model "
                "computes something else than it did. Cut it by the method's plan, which leaves them out.",
                stacklevel=3,
            )

    def slopes(self, closure: bool = False) -> Tensor:
        """After a step: the gradient of the loss by the gates, [gates], as the step would have consumed it: nothing of
        passes whose gradients were zeroed before it. The mean over the passes that a ``closure`` has made within the
        step. Does not wait for the device.

        Raises:
            MethodError: no gradient has reached any of them.
        """
        if self._now is None:
            gradient = self._passes.mean() if closure else self._passes.total()
            if gradient is None:
                raise MethodError(
                    f"No gradient has reached the gates of terms without parameters ({', '.join(self._gates.names[:3])}"
                    f"{' and others' * (len(self._gates.names) > 3)}), so that nothing tells what these are worth. Let "
                    "the training loop call the model of the search space, and build the method before the model is "
                    "compiled (torch.compile does not see hooks that come later)."
                )
            # What is not finite is left of a pass whose step a scaler has skipped: the weights of this one are.
            self._now = torch.nan_to_num(self._as_consumed(gradient.double()), 0.0, 0.0, 0.0)
        return self._now

    def _as_consumed(self, gradient: Tensor) -> Tensor:
        found = self._passes.of_witnesses()
        before = torch.cat([gradient, *(a.flatten().to(gradient) for a, _ in found)])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(before)
            before = before / distributed.get_world_size()
        gradient, before = before[: len(gradient)], before[len(gradient) :]
        if not found:
            return gradient
        after = torch.cat([b.detach().flatten().to(gradient) for _, b in found])
        square = before @ before
        return gradient * torch.where(square > 0, (before @ after) / square, 1.0)

    def forget(self) -> None:
        """The step is over."""
        self._passes.forget()
        self._now = None

    def rate(self) -> float | Tensor:
        """The learning rate of a gate: that of the optimizer's first param group."""
        rate: float | Tensor = self._optimizer.param_groups[0].get("lr", 0.0)
        return rate

    def load(self, values: Tensor) -> None:
        """Continue with these ``values`` [gates]."""
        self.values.copy_(values)


def _smallest(optimizer: Optimizer) -> list[nn.Parameter]:
    held = [one for group in optimizer.param_groups for one in group["params"] if one.requires_grad]
    real = [one for one in held if one.is_floating_point() and one.numel()]
    return sorted(real, key=lambda one: one.numel())[:_WITNESSES]
