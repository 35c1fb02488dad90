"""The law, for users: cut(model)(x) equals zeroed(model)(x)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from niwaki.core.plan import Plan
from niwaki.surgery.cut import cut
from niwaki.surgery.zero import zeroed
from niwaki.trace.preserve import preserved
from niwaki.trace.tracer import ExampleCall, example_calls, tensors_in

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of `check`.

    ``deviation``: largest difference between the outputs of the cut and of the zeroed network, relative to the largest
    output. ``holds``: whether it is within ``tolerance``. ``diverges``: the first module whose outputs differ, if the
    law does not hold. ``distance``: the same measure between the zeroed and the original network: how much the removed
    units still mattered.
    """

    deviation: float
    tolerance: float
    holds: bool
    diverges: str | None
    distance: float

    def __str__(self) -> str:
        verdict = "holds" if self.holds else f"DOES NOT HOLD (first in module {self.diverges!r})"
        return (
            f"The law {verdict}: the cut network is within {self.deviation:.1e} of the zeroed one "
            f"(allowed {self.tolerance:.0e}); the zeroed one is {self.distance:.1e} from the original."
        )


def check(model: torch.nn.Module, plan: Plan, inputs: Any, double: bool = True) -> Check:
    """Try the law on a model: cut it, zero it, run both in eval mode, compare.

    ``inputs`` as for `niwaki.search_space`. ``double``: compare copies in float64, where round-off cannot hide a
    difference; False keeps the model's own precision. The model is left as it was.

    Raises:
        PlanError: the plan is for another network.
    """
    calls = example_calls(inputs)
    with preserved(model):
        original = _prepared(model, double)
        small, zero = cut(original, plan), zeroed(original, plan)
        deviation, distance, dtype = 0.0, 0.0, torch.float32
        for call in calls:
            reference = _run(zero, call, double)
            deviation = max(deviation, difference(_run(small, call, double), reference))
            distance = max(distance, difference(_run(original, call, double), reference))
            dtype = next((t.dtype for t in reference if t.dtype.is_floating_point), dtype)
        tolerance = TOLERANCE.get(dtype, 1e-2)
        holds = deviation <= tolerance
        diverges = None if holds else _first_divergence(small, zero, calls, double, tolerance)
    return Check(deviation, tolerance, holds, diverges, distance)


def _prepared(model: torch.nn.Module, double: bool) -> torch.nn.Module:
    same = copy.deepcopy(model).eval()
    return same.double() if double else same


def convert(call: ExampleCall, dtype: torch.dtype | None) -> ExampleCall:
    """Copies of the inputs, those of floating point in ``dtype``."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.detach().clone()
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    converted: ExampleCall = tree_map_only(torch.Tensor, copied, call)
    return converted


def _run(model: torch.nn.Module, call: ExampleCall, double: bool) -> list[torch.Tensor]:
    args, kwargs = convert(call, torch.float64 if double else None)
    with torch.no_grad():
        return list(tensors_in(model(*args, **kwargs)))


def difference(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Largest difference relative to the largest entry; infinite where shapes, counts or NaNs disagree."""
    if len(ours) != len(reference):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, reference, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not a.numel():
            continue
        if not a.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        if not torch.equal(a.isfinite(), b.isfinite()):
            return float("inf")
        a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
        scale = float(b.abs().max())
        gap = float((a - b).abs().max())
        worst = max(worst, gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf")))
    return worst


def _first_divergence(
    small: torch.nn.Module, zero: torch.nn.Module, calls: tuple[ExampleCall, ...], double: bool, tolerance: float
) -> str:
    """The first module, in order of completion, whose outputs differ where their shapes can be compared."""
    seen = []
    for model in (small, zero):
        outputs: list[tuple[str, list[torch.Tensor]]] = []
        handles = [module.register_forward_hook(_noter(name, outputs)) for name, module in model.named_modules()]
        for call in calls:
            _run(model, call, double)
        for handle in handles:
            handle.remove()
        seen.append(outputs)
    for (name, ours), (_, theirs) in zip(seen[0], seen[1], strict=False):
        comparable = [(a, b) for a, b in zip(ours, theirs, strict=False) if a.shape == b.shape]
        if difference([a for a, _ in comparable], [b for _, b in comparable]) > tolerance:
            return name
    return ""


def _noter(name: str, outputs: list[tuple[str, list[torch.Tensor]]]) -> Callable[..., None]:
    def note(module: torch.nn.Module, args: Any, result: Any) -> None:
        outputs.append((name, [tensor.detach().clone() for tensor in tensors_in(result)]))

    return note
