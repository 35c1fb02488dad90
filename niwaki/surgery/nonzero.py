"""Whether the units that a method has set to zero are zero in given weights: an average, a checkpoint, the model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from niwaki.core.counts import FloatArray, IntArray
from niwaki.core.edits import Zeroed
from niwaki.core.names import named_parameters
from niwaki.core.plan import Plan

# A weight that is smaller than this times the largest of its tensor counts as zero: a long average is never quite.
_EPSILON = float(torch.finfo(torch.float32).eps)


@dataclass(frozen=True, slots=True, eq=False)
class Nonzero:
    """Units that should be zero and are not: their numbers, and the largest entry of theirs in any tensor, beside the
    largest one there that stays."""

    units: IntArray
    tensor: str
    largest: float
    kept: float

    def __str__(self) -> str:
        return f"up to {self.largest:.2g} in {self.tensor!r}, where what stays reaches {self.kept:.2g}"


@torch.no_grad()
def nonzero(tensors: Mapping[str, Tensor], zeroed: Iterable[Zeroed]) -> Nonzero | None:
    """What of ``zeroed`` is not zero in ``tensors``; None if all is. One pass over them, and one copy per device to the
    host; tensors on the meta device, which hold nothing, and sharded or quantised ones are left out."""
    asked: list[tuple[str, Zeroed]] = []
    peaks: list[Tensor] = []
    for part in zeroed:
        for name, dim in part.dims:
            if _holds_values(tensors.get(name)):
                asked.append((name, part))
                peaks.append(_peaks(tensors[name].detach(), dim))
    units: list[IntArray] = []
    worst: tuple[float, float, str] | None = None
    for (name, part), values in zip(asked, _to_host(peaks), strict=True):
        removed = np.zeros(len(values), dtype=bool)
        removed[np.asarray(part.positions)] = True
        epsilon = _EPSILON if tensors[name].dtype != torch.float64 else float(torch.finfo(torch.float64).eps)
        scale = float(values[np.isfinite(values)].max(initial=0.0))
        held = ~(values[removed] <= epsilon * scale)  # true of NaN
        if held.any():
            units.append(np.asarray(part.units)[held])
            largest = float(np.nan_to_num(values[removed], nan=np.inf).max())
            worst = max(worst or (0.0, 0.0, ""), (largest, float(values[~removed].max(initial=0.0)), name))
    return None if worst is None else Nonzero(np.unique(np.concatenate(units)), worst[2], worst[0], worst[1])


def _holds_values(tensor: object) -> bool:
    return isinstance(tensor, Tensor) and not tensor.is_meta and not is_traceable_wrapper_subclass(tensor)


def _peaks(tensor: Tensor, dim: int) -> Tensor:
    """The largest absolute value at each position of ``dim``."""
    if tensor.is_complex():
        tensor = tensor.abs()
    elif tensor.element_size() == 1 or not tensor.is_floating_point():
        tensor = tensor.float()
    others = [other for other in range(tensor.ndim) if other != dim]
    if not tensor.numel():
        return torch.zeros(tensor.shape[dim], device=tensor.device)
    # Two reductions need no copy of the tensor, and are several times as fast as one of its absolute values.
    return (torch.maximum(tensor.amax(others), -tensor.amin(others)) if others else tensor.abs()).float()


def _to_host(values: Sequence[Tensor]) -> list[FloatArray]:
    """Vectors, copied from each device at once."""
    found: dict[int, FloatArray] = {}
    for device in {value.device for value in values}:
        here = [number for number, value in enumerate(values) if value.device == device]
        together = torch.cat([values[number] for number in here]).cpu().numpy()
        ends = np.cumsum([len(values[number]) for number in here])[:-1]
        found |= dict(zip(here, np.split(together, ends), strict=True))
    return [found[number] for number in range(len(values))]


def warn_of_nonzero(model: torch.nn.Module, plan: Plan, what: str = "the weights given") -> None:
    """Warn the caller of a function that removes what ``plan`` says, where a method made the plan and what is removed
    is not zero in ``model``, which the plan fits. Plans that no method made remove units that nobody has zeroed."""
    found = nonzero(dict(named_parameters(model)), plan.edits_of(Zeroed))
    if found is not None:
        warnings.warn(_sentence(found, plan, what), stacklevel=3)


def _sentence(found: Nonzero, plan: Plan, what: str) -> str:
    ends = np.cumsum(list(plan.units.values()))
    shrinking = sum(len(kept) < plan.units[name] for name, kept in plan.kept.items())
    groups = len(np.unique(np.searchsorted(ends, found.units, side="right")))
    removed = int(ends[-1]) - sum(map(len, plan.kept.values()))
    method = plan.provenance.get("method", "The method")
    if plan.provenance.get("ended", True):
        why = (
            f"{method} set them to zero in the model that it trained, and these are other weights: an average (EMA), a "
            "checkpoint from before the end of the schedule, or weights written after the last step."
        )
        mend = "Take weights from steps where method.done is true, and start averages anew at that step;"
    else:
        why = (
            f"The plan is of step {plan.provenance.get('step')}, before the end of the schedule of {method}, which had "
            "not set all of them to zero yet."
        )
        mend = "Train until method.done is true, and cut by the plan that the method makes then;"
    return (
        f"{len(found.units)} of the {removed} units that the plan removes, in {groups} of {shrinking} groups, are not "
        f"zero in {what}: {found}. {why} The cut network computes what these would with zeros there, which "
        f"niwaki.check compares. {mend} docs/ema_and_checkpoints.md shows how."
    )
