"""The law for a whole model: cut(model)(x) equals zeroed(model)(x), forward and backward, for random plans."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.errors import NiwakiError
from niwaki.precision import doubled
from niwaki.search import search_space
from niwaki.surgery.cut import cut, duplicate
from niwaki.surgery.zero import zeroed
from niwaki.trace.preserve import preserved
from niwaki.trace.structures import ExampleCall, tensors_in
from niwaki.trace.tracer import example_calls
from niwaki.verify import check, convert, difference

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
GRADIENT_TOLERANCE = 1e-8
_SHAKE = 1e-15  # a few units in the last place
_AMPLIFIED = 10.0  # round-off of a whole pass, in multiples of one change of that size
_DROPPING = ("p", "drop_rate", "drop_prob", "drop_path_prob", "drop_path_rate", "drop_path", "layerdrop", "scale_prob")


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What `check_model` found on a model that obeys the law.

    ``units``, ``groups`` and ``coverage`` are those of the search space; ``plans`` random plans were tried. ``forward``
    and ``backward`` are the largest deviations of outputs in eval mode and of gradients in train mode, relative to the
    largest entry; ``backward`` is None where the model does not run in train mode in float64. ``kept``: the mean share
    of the parameters that the plans left.
    """

    units: int
    groups: int
    coverage: float
    plans: int
    forward: float
    backward: float | None
    kept: float

    def __str__(self) -> str:
        backward = "not run" if self.backward is None else f"within {self.backward:.1e}"
        return (
            f"The law holds for {self.plans} random plans over {self.units} units in {self.groups} groups "
            f"(coverage {self.coverage:.1%}, {self.kept:.1%} of the parameters kept): outputs within "
            f"{self.forward:.1e}, gradients {backward}."
        )


def check_model(
    model: nn.Module,
    example_inputs: Any,
    *,
    plans: int = 3,
    share: float = 0.5,
    seed: int = 0,
    train: bool = True,
    least_coverage: float = 0.0,
) -> ModelReport:
    """Assert that niwaki understands a model: whatever is cut, the rest computes what the zeroed network computes.

    Works on a copy with random norm statistics and scales (see `randomised`); the model is left as it was. Each of
    ``plans`` random plans keeps about ``share`` of every group. Outputs are compared in eval mode and, with ``train``,
    the gradients of the kept parameters in train mode with dropout and drop-path off, both in float64; a model that
    does not run in float64 is compared in its own precision, outputs only.

    Raises:
        AssertionError: the law does not hold, with the first module that diverges; or the coverage, the share of the
            parameters that lie in a unit, is below ``least_coverage``, with the most frequent reasons.
        TraceError: the model does not run on these inputs.

    Example:
        >>> import torch
        >>> from niwaki.testing import check_model
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2))
        >>> report = check_model(net, torch.randn(3, 4), least_coverage=0.9)
        >>> report.units, report.groups, report.forward < 1e-10
        (8, 1, True)
    """
    calls = example_calls(example_inputs)
    with preserved(model):
        subject = randomised(duplicate(model), seed)
        space = search_space(subject, example_inputs)
        if space.coverage < least_coverage:
            raise AssertionError(_too_little(space, least_coverage))
        rng = np.random.default_rng(seed)
        forward, backward, kept = 0.0, None, []
        for number in range(plans):
            plan = random_plan(space, rng, share)
            try:
                outcome = check(subject, plan, example_inputs)
                gradients = gradient_deviation(subject, plan, calls[0]) if train else None
            except (NiwakiError, RuntimeError, ValueError, TypeError, IndexError) as cause:
                raise AssertionError(f"Random plan {number} (seed {seed}): the cut model fails: {cause}") from cause
            if not outcome.holds:
                raise AssertionError(f"Random plan {number} (seed {seed}): {outcome}")
            if gradients is not None and not gradients.within(GRADIENT_TOLERANCE):
                raise AssertionError(
                    f"Random plan {number} (seed {seed}): in train mode, the gradient of {gradients.parameter!r} in "
                    f"the cut network is {gradients.deviation:.1e} from that in the zeroed one "
                    f"(allowed {GRADIENT_TOLERANCE:.0e})."
                )
            forward = max(forward, outcome.deviation)
            backward = backward if gradients is None else max(backward or 0.0, gradients.deviation)
            kept.append(space.cost(plan).params / max(1, space.cost().params))
    return ModelReport(
        space.num_units, len(space.groups), space.coverage, plans, forward, backward, float(np.mean(kept or [1.0]))
    )


def _too_little(space: SearchSpace, least: float) -> str:
    reasons: dict[str, int] = {}
    for pin in space.pins:
        reasons[pin.reason] = reasons.get(pin.reason, 0) + pin.count
    worst = sorted(reasons.items(), key=lambda item: -item[1])[:3]
    listed = "; ".join(f"{reason} ({count} positions)" for reason, count in worst)
    return (
        f"Only {space.coverage:.1%} of the parameters lie in a unit, and {least:.1%} are asked for. "
        f"The most frequent reasons: {listed or 'none'}."
    )


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norm statistics, and random values for every parameter that is constant or a vector: or the law is blind.

    A scale that starts at zero or a bias that starts at zero hides whatever is wrong behind it. In place.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if parameter.ndim < 2 or bool((parameter == parameter.reshape(-1)[0]).all()):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        for name, buffer in model.named_buffers():
            if "running_" in name and buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def without_randomness(model: nn.Module) -> nn.Module:
    """Dropout and drop-path off, so that two networks can be compared in train mode. In place."""
    for module in model.modules():
        for name, value in list(module.__dict__.items()):
            if isinstance(value, float) and (name in _DROPPING or "dropout" in name):
                setattr(module, name, 0.0)
    return model


def random_plan(space: SearchSpace, rng: np.random.Generator, share: float = 0.5) -> Plan:
    """A plan that keeps about ``share`` of every group, at random, as the ties between groups allow."""
    kept = [
        min(group.units, max(least, round(group.units * rng.uniform(0.5, 1.5) * share)))
        for group, least in zip(space.groups, space.least_units(), strict=True)
    ]
    for tie in space.ties:
        times = int(rng.integers(0, tie.most + 1))
        for group, step in zip(tie.groups, tie.steps, strict=True):
            kept[group] = space.groups[group].units - times * step
    keep = np.zeros(space.num_units, dtype=bool)
    for owner, number in zip(space.groups, kept, strict=True):
        keep[owner.first + rng.permutation(owner.units)[:number]] = True
    return space.plan(keep)


@dataclass(frozen=True, slots=True)
class Deviation:
    """The largest deviation between two networks, relative to the largest entry, and the parameter it was found in
    (empty for outputs). ``precision`` is the type the two were compared in. ``noise``: how far the reference is from
    itself after its parameters change by a few units in the last place; found out only for a large deviation."""

    deviation: float
    parameter: str = ""
    precision: torch.dtype = torch.float64
    noise: float = 0.0

    def within(self, tolerance: float) -> bool:
        """Whether the deviation is allowed, or no larger than what round-off does to the reference itself.

        A BatchNorm over two values has gradients that consist of round-off.
        """
        return self.deviation <= max(tolerance, _AMPLIFIED * self.noise)


def output_deviation(model: nn.Module, plan: Plan, call: ExampleCall) -> Deviation:
    """How far the outputs of the cut network are from those of the zeroed one, in eval mode.

    As `niwaki.check`, with less memory: at most two copies of the model in float64 are held beside it.
    """
    for dtype in (torch.float64, None):
        dense = duplicate(model).eval()
        dense = dense.double() if dtype is not None else dense
        small, zero = cut(dense, plan), zeroed(dense, plan)
        del dense
        try:
            reference = _outputs(zero, call, dtype)
        except (RuntimeError, TypeError):
            if dtype is None:
                raise
            continue  # a constant of another type inside, or an operator without float64
        found = difference(_outputs(small, call, dtype), reference)
        precision = next((tensor.dtype for tensor in reference if tensor.is_floating_point()), torch.float64)
        return Deviation(found, precision=precision)
    raise AssertionError("unreachable")


def gradient_deviation(model: nn.Module, plan: Plan, call: ExampleCall) -> Deviation | None:
    """How far the gradients of the kept parameters are from those in the zeroed network, in train mode in float64.

    The loss is a random combination of all floating-point outputs. None where the zeroed model itself does not run in
    train mode in float64, or gives no gradient to any parameter.
    """
    dense = without_randomness(duplicate(model).double().train())
    small, zero = cut(dense, plan), zeroed(dense, plan)
    try:
        expected = _kept_gradients(zero, plan, call)
    except (RuntimeError, TypeError, ValueError, AssertionError, NotImplementedError, AttributeError):
        return None
    del zero
    if not expected:
        return None
    ours = _gradients(small, call)
    for repair in plan.repairs:  # the cut network's own weight is this factor times the zeroed one's
        if repair.tensor in ours:
            ours[repair.tensor] = ours[repair.tensor] * repair.factor
    found = _largest(ours, expected)
    if found.deviation > GRADIENT_TOLERANCE and found.deviation < float("inf"):
        shaken = _kept_gradients(_shaken(zeroed(dense, plan)), plan, call)
        return replace(found, noise=_largest(shaken, expected).deviation)
    return found


def _largest(ours: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> Deviation:
    odd = sorted(set(expected) ^ set(ours))
    if odd:
        return Deviation(float("inf"), odd[0])
    scale = max((float(gradient.abs().max()) for gradient in expected.values() if gradient.numel()), default=0.0)
    worst = Deviation(0.0)
    for name, gradient in expected.items():
        if gradient.shape != ours[name].shape or not torch.equal(gradient.isnan(), ours[name].isnan()):
            return Deviation(float("inf"), name)
        gap = float((gradient - ours[name]).nan_to_num(0, 0, 0).abs().max()) if gradient.numel() else 0.0
        relative = gap / scale if scale > 0 else (0.0 if gap == 0 else float("inf"))
        if relative > worst.deviation:
            worst = Deviation(relative, name)
    return worst


def _shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.rand(parameter.shape, generator=generator, dtype=parameter.dtype) - 0.5
            parameter.mul_(1 + _SHAKE * noise.to(parameter.device))
    return model


def _kept_gradients(model: nn.Module, plan: Plan, call: ExampleCall) -> dict[str, torch.Tensor]:
    return {name: _kept(gradient, plan.tensors.get(name, {})) for name, gradient in _gradients(model, call).items()}


def _kept(gradient: torch.Tensor, dims: Mapping[int, Sequence[int]]) -> torch.Tensor:
    for dim, kept in dims.items():
        gradient = gradient.index_select(dim, torch.tensor(kept, dtype=torch.int64, device=gradient.device))
    return gradient


@contextmanager
def _drawing_alike() -> Iterator[None]:
    """What a model draws at random, even in eval mode, every network draws alike; nothing is used up."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def _outputs(model: nn.Module, call: ExampleCall, dtype: torch.dtype | None) -> list[torch.Tensor]:
    args, kwargs = convert(call, dtype)
    with torch.no_grad(), _drawing_alike(), doubled() if dtype is not None else nullcontext():
        return list(tensors_in(model(*args, **kwargs)))


def _gradients(model: nn.Module, call: ExampleCall) -> dict[str, torch.Tensor]:
    args, kwargs = convert(call, torch.float64)
    generator = torch.Generator().manual_seed(0)
    with torch.enable_grad(), _drawing_alike(), doubled():
        floating = [out for out in tensors_in(model(*args, **kwargs)) if out.is_floating_point() and out.requires_grad]
        terms = [(out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum() for out in floating]
        if terms:
            torch.stack(terms).sum().backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
