"""Check a cut: whether the cut network equals the masked one, and whether the removed units were zero."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

import numpy as np
import torch

from niwaki.core.edits import EraseModules
from niwaki.core.names import named_modules
from niwaki.core.plan import Plan
from niwaki.core.precision import doubled
from niwaki.errors import PlanError, TraceError, first_line
from niwaki.program.convert import rebuilt
from niwaki.program.entry import calls_of
from niwaki.program.module import Program, observer
from niwaki.surgery.cut import check_kind, cut_module, duplicate
from niwaki.surgery.history import check_plan, subject_of, to_do
from niwaki.surgery.leftovers import forget_leftovers
from niwaki.surgery.zero import masked, zero_out, zeroed
from niwaki.trace.eager import eagerly
from niwaki.trace.foreign import Apart
from niwaki.trace.model_state import held, preserved
from niwaki.trace.outside import preserved_outside
from niwaki.trace.refusals import does_not_run
from niwaki.trace.structures import ExampleCall, map_tensors, others_in, tensors_in
from niwaki.trace.warmup import warm_up

_SHOWN = 3  # layers
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


@dataclass(frozen=True, slots=True)
class Check:
    """The outcome of `check`: two facts about a cut.

    Whether it is exact. ``deviation``: largest difference between the outputs of the cut network and of the masked one,
    which is the model with its removed units at zero, relative to the largest output. ``holds``: whether it is within
    ``tolerance``. ``diverges``: the first module (or call of a program) whose outputs differ, if the cut is not exact.

    ``inexact``: whole layers that the plan leaves out. No zeros do that: in the masked network they hand on what they
    are given.

    Whether the removed units were zero. ``distance``: the same measure between the masked network and the unchanged
    model. Where it is large, the cut network is as far from the model, exact or not.
    """

    deviation: float
    tolerance: float
    holds: bool
    diverges: str | None
    distance: float
    inexact: tuple[str, ...] = ()

    @property
    def zero(self) -> bool:
        """Whether the removed units were zero, by the outputs: they are after the schedule of a method, and usually are
        not if `niwaki.choose` chose them in a network that was not trained for it."""
        return self.distance <= self.tolerance

    def __str__(self) -> str:
        return f"{self._exactness()} {self._zeros()}"

    def _exactness(self) -> str:
        if self.holds and self.inexact:
            return (
                f"Inexact: the plan leaves out {_listed(self.inexact)}, which no zeros do. The cut network equals the "
                f"masked one in which {'these layers hand' if len(self.inexact) > 1 else 'this layer hands'} on what "
                f"{'they are' if len(self.inexact) > 1 else 'it is'} given (max. relative difference "
                f"{self.deviation:.1e}, allowed {self.tolerance:.0e})."
            )
        if self.holds:
            return (
                "Exact: the cut network equals the masked one (max. relative difference "
                f"{self.deviation:.1e}, allowed {self.tolerance:.0e})."
            )
        return (
            "NOT EXACT: the cut network differs from the masked one (max. relative difference "
            f"{self.deviation:.1e}, allowed {self.tolerance:.0e}; first in module {self.diverges!r})."
        )

    def _zeros(self) -> str:
        if self.zero:
            return "The removed units were zero."
        by = f"by {_percent(self.distance)} of its largest value" if isfinite(self.distance) else "beyond measure"
        return f"Setting the removed units to zero changes the output {by}: they were not zero."


@eagerly()
def check(
    model: torch.nn.Module | torch.export.ExportedProgram, plan: Plan, inputs: Any = None, as_graph: bool = False
) -> Check:
    """Try a cut: cut the model, mask it (set the removed units to zero), run both in eval mode, and compare.

    ``inputs`` and ``as_graph`` as for `niwaki.search_space`. Copies are compared in float64, where round-off cannot
    hide a difference, also where the code requests float32 by name, as many norms do; a model that does not run in
    float64 is compared in its own precision. The model is not changed.

    Raises:
        PlanError: the plan is for another network, or the cut network does not run, or computes with tensors of the
            model itself.
        TraceError: the model does not run on these inputs.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> x = torch.randn(64, 4)
        >>> space = niwaki.search_space(net, x)
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> outcome = niwaki.check(net, plan, x)
        >>> outcome.holds, outcome.zero
        (True, False)
    """
    check_plan(plan)
    calls = calls_of(model, inputs)
    model = subject_of(model, calls[0], as_graph)
    check_kind(model, plan)
    plan, _ = to_do(model, plan)
    with preserved_outside(model.modules()):
        if not isinstance(model, Program):  # before a cache could keep values of another precision
            warm_up(model, calls)
            warm_up(cut_module(model, plan), calls)
        with preserved(model):
            return _checked(model, plan, calls)


def _checked(model: torch.nn.Module, plan: Plan, calls: tuple[ExampleCall, ...]) -> Check:
    apart = Apart(model)
    dtype: torch.dtype | None = torch.float64
    try:
        original, small, zero = _copies_of(model, plan, dtype)
        expected = [_run(original, call, dtype, apart) for call in calls]
    except (RuntimeError, TypeError):  # a constant of another type inside, or an operator without float64
        dtype = None
        original, small, zero = _copies_of(model, plan, dtype)
        expected = [_run_model(original, calls, call, apart) for call in calls]
    apart.check()
    deviation, distance, precision = 0.0, 0.0, torch.float64
    for call, untouched in zip(calls, expected, strict=True):
        reference = _run(zero, call, dtype, apart)
        deviation = max(deviation, difference(_run_cut(small, call, dtype, apart), reference))
        distance = max(distance, difference(untouched, reference))
        precision = next((tensor.dtype for tensor in reference if tensor.is_floating_point()), precision)
    tolerance = TOLERANCE.get(precision, 1e-2)
    holds = deviation <= tolerance
    diverges = None if holds else _first_divergence(small, zero, calls, dtype, tolerance)
    apart.check()
    del original, small, zero  # each is as large as the model, or twice that in float64
    if holds:
        departure, allowed = _departure_of_copies(model, plan, calls)
        if departure > allowed:
            left = forget_leftovers(model, only_look=True)
            deviation, holds = departure, False
            diverges = f"a copy, which computes something else than the model{_without(left)}"
    if isinstance(model, Program) and holds:
        departure = _departure(model, plan, calls)
        if departure > TOLERANCE[torch.float32]:
            deviation, holds, diverges = departure, False, "the exported program made of the cut module"
    inexact = tuple(path for edit in plan.edits_of(EraseModules) for path in edit.layers)
    return Check(deviation, tolerance, holds, diverges, distance, inexact)


def _copies_of(
    model: torch.nn.Module, plan: Plan, dtype: torch.dtype | None
) -> tuple[torch.nn.Module, torch.nn.Module, torch.nn.Module]:
    """Copies of the model: unchanged, cut and masked. None has run yet, so their buffers and caches are equal."""
    original = _fresh(model)
    if dtype is not None:
        original = original._apply(partial(_converted, dtype=dtype))  # type: ignore[no-untyped-call]
    return original, cut_module(original, plan), zeroed(original, plan)


def _fresh(model: torch.nn.Module) -> torch.nn.Module:
    """A copy in eval mode, without the state that a cut drops."""
    copy = duplicate(model).eval()
    forget_leftovers(copy)
    return copy


def _departure_of_copies(model: torch.nn.Module, plan: Plan, calls: tuple[ExampleCall, ...]) -> tuple[float, float]:
    """The difference between a masked copy of the model and the model itself, masked, and the allowed difference. Both
    in their own precision: for another, the tensors of the model would have to be converted."""
    copy = zero_out(_fresh(model), plan)
    copied = [_run(copy, call, None) for call in calls]
    del copy
    model.eval()
    with masked(model, plan):
        own = [_run_model(model, calls, call) for call in calls]
    kinds = {tensor.dtype for outputs in own for tensor in outputs if tensor.is_floating_point()}
    allowed = max((TOLERANCE.get(kind, 1e-2) for kind in kinds), default=0.0)
    return max(difference(*pair) for pair in zip(copied, own, strict=True)), allowed


def _without(left: list[str]) -> str:
    return f": it starts without {', '.join(left)}" if left else ""


def _departure(model: Program, plan: Plan, calls: tuple[ExampleCall, ...]) -> float:
    """The difference between the exported program that `cut` returns and the cut module that it is made from; it must
    be zero, bit by bit. A program has the buffers of the module that it is made from, and may write to them."""
    small, other = cut_module(model, plan), cut_module(model, plan)
    assert isinstance(small, Program) and isinstance(other, Program)
    program = rebuilt(other).module()
    return max(difference(_run(program, call, None), _run(small, call, None)) for call in calls)


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return f"{', '.join(map(repr, paths[:_SHOWN]))}{more}"


def _percent(share: float) -> str:
    return f"{100 * share:,.0f} %" if share >= 1 else f"{100 * share:.2g} %"


def convert(call: ExampleCall, dtype: torch.dtype | None) -> ExampleCall:
    """Copies of the inputs, those of floating point in ``dtype``."""

    def copied(tensor: torch.Tensor) -> torch.Tensor:
        return _converted(tensor.detach().clone(), dtype)

    converted: ExampleCall = map_tensors(call, copied)
    return converted


def _converted(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """``tensor`` in ``dtype``, complex numbers with parts of ``dtype``, other tensors unchanged."""
    if dtype is None or not (tensor.is_floating_point() or tensor.is_complex()):
        return tensor
    return tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)


def _run(
    model: torch.nn.Module, call: ExampleCall, dtype: torch.dtype | None, apart: Apart | None = None
) -> list[torch.Tensor]:
    args, kwargs = convert(call, dtype)
    given = held(model, others_in(call))  # so that each run of each copy begins with the same state
    torch.manual_seed(0)  # random numbers that a model draws in eval mode are the same; `preserved` restores the state
    random.seed(0)
    np.random.seed(0)
    with given, torch.no_grad(), doubled() if dtype is torch.float64 else nullcontext(), apart or nullcontext():
        return list(tensors_in(model(*args, **kwargs)))


def _run_model(
    model: torch.nn.Module, calls: tuple[ExampleCall, ...], call: ExampleCall, apart: Apart | None = None
) -> list[torch.Tensor]:
    try:
        return _run(model, call, None, apart)
    except Exception as cause:  # of the user's code
        raise TraceError(does_not_run(model, calls, call, cause)) from cause


def _run_cut(small: torch.nn.Module, call: ExampleCall, dtype: torch.dtype | None, apart: Apart) -> list[torch.Tensor]:
    try:
        return _run(small, call, dtype, apart)
    except Exception as cause:  # of the user's code
        apart.check()
        raise PlanError(
            "The cut network does not run on the inputs that the model runs on: "
            f"{type(cause).__qualname__}: {first_line(cause)}. Something in it may still have the dense size, such as "
            "a tensor or a number that the model has made for itself: register it as a buffer, or make the search "
            "space of the model as it is now."
        ) from cause


def difference(ours: list[torch.Tensor], reference: list[torch.Tensor]) -> float:
    """Largest difference, relative to the largest entry; infinite if shapes, counts or NaNs differ."""
    if len(ours) != len(reference):
        return float("inf")
    worst = 0.0
    for a, b in zip(ours, reference, strict=True):
        if a.shape != b.shape:
            return float("inf")
        a, b = _plain(a), _plain(b)
        if not a.numel():
            continue
        if not a.is_floating_point():
            worst = max(worst, 0.0 if torch.equal(a, b) else float("inf"))
            continue
        if not torch.equal(a.isnan(), b.isnan()) or not torch.equal(a[a.isinf()], b[b.isinf()]):
            return float("inf")
        a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
        scale = float(b.abs().max())
        gap = float((a - b).abs().max())
        worst = max(worst, gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf")))
    return worst


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor of real numbers for any output, also sparse and complex ones."""
    tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def _first_divergence(
    small: torch.nn.Module,
    zero: torch.nn.Module,
    calls: tuple[ExampleCall, ...],
    dtype: torch.dtype | None,
    tolerance: float,
) -> str:
    """The first module, in order of completion, whose outputs differ, among those with comparable shapes."""
    seen = []
    for model in (small, zero):
        outputs: list[tuple[str, list[torch.Tensor]]] = []
        handles = [module.register_forward_hook(_noter(name, outputs)) for name, module in named_modules(model)]
        token = observer.set(_observing(outputs))
        for call in calls:
            _run(model, call, dtype)
        observer.reset(token)
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
        outputs.append((name, _copies(result)))

    return note


def _observing(outputs: list[tuple[str, list[torch.Tensor]]]) -> Callable[[str, Any], None]:
    return lambda name, result: outputs.append((name, _copies(result)))


def _copies(result: Any) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in tensors_in(result)]
