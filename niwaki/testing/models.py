"""Check a whole model: cut(model)(x) equals zeroed(model)(x), forward and backward, for random plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from niwaki.core.names import named_buffers
from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import NiwakiError
from niwaki.search import search_space
from niwaki.surgery.cut import duplicate
from niwaki.testing.rivals import GRADIENT_TOLERANCE, Rivals
from niwaki.trace.model_state import preserved
from niwaki.trace.tracer import example_calls
from niwaki.trace.warmup import warm_up
from niwaki.verify import check


@dataclass(frozen=True, slots=True)
class ModelReport:
    """The result of `check_model` for a model whose cuts are exact.

    ``units``, ``groups`` and ``coverage`` are those of the search space; ``plans`` random plans were tried. ``forward``
    and ``backward`` are the largest deviations of outputs in eval mode and of gradients in train mode, relative to the
    largest entry; ``backward`` is None where the model does not run in train mode in float64. ``kept``: the mean
    fraction of the parameters that the plans kept.
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
            f"Exact for {self.plans} random plans over {self.units} units in {self.groups} groups "
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
    """Assert that cuts of a model are exact: the cut network equals the masked one for random plans.

    Works on a copy with random norm statistics and scales (see `randomised`); the model is not changed. Each of
    ``plans`` random plans keeps about ``share`` of every group. Outputs are compared in eval mode and, with ``train``,
    the gradients of the kept parameters in train mode with dropout and drop-path off, both in float64; a model that
    does not run in float64 is compared in its own precision, outputs only.

    Raises:
        AssertionError: a cut is not exact, with the first module that diverges; or the coverage, the fraction of the
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
    warm_up(model, calls, train=train)
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
                gradients = Rivals(subject, plan).gradients(calls[0]) if train else None
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
    """Set random norm statistics, and random values for every parameter that is constant or a vector, in place.

    A scale or a bias that starts at zero would hide any error behind it.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.is_floating_point() or not parameter.numel():
                continue
            if parameter.ndim < 2 or bool((parameter == parameter.reshape(-1)[0]).all()):
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        for name, buffer in named_buffers(model):
            if "running_" in name and buffer.is_floating_point():
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def random_plan(space: SearchSpace, rng: np.random.Generator, share: float = 0.5) -> Plan:
    """A plan that keeps about ``share`` of every group, at random, as far as the ties between groups allow; and all
    structures (`niwaki.testing.random_erasure` erases some)."""
    return space.plan(random_keep(space, rng, share))


def random_keep(space: SearchSpace, rng: np.random.Generator, share: float = 0.5) -> BoolArray:
    """The units that such a plan keeps, as a mask [num_units]."""
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
        keep[owner.numbers] |= owner.structure is not None
    return keep
