"""Check that structures of a model can be erased: what is cut equals the network in which their terms are zero."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from niwaki.core.plan import Plan
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.core.structures import Structure
from niwaki.errors import NiwakiError, PlanError
from niwaki.program.entry import program_of
from niwaki.program.module import Program
from niwaki.search import search_space
from niwaki.surgery.cut import duplicate
from niwaki.testing.models import random_keep, randomised
from niwaki.testing.rivals import GRADIENT_TOLERANCE, Deviation, Rivals
from niwaki.trace.model_state import preserved
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import example_calls
from niwaki.trace.warmup import warm_up
from niwaki.verify import TOLERANCE

_REFUSALS = 8  # of choices in a row, each half as large as the one before


@dataclass(frozen=True, slots=True)
class ErasingReport:
    """The result of `check_erasing` for a model from which structures are erased exactly.

    ``listed`` structures were found, of which ``erasable`` can be erased by themselves. ``plans`` random plans were
    tried, which erased ``erased`` structures on average and kept the fraction ``kept`` of the parameters. ``forward``
    and ``backward`` are the largest deviations of outputs and of gradients, relative to the largest entry;
    ``backward`` is None where there are no gradients in float64. ``refused``: how many random sets the user's class
    could not do without all at once, so that fewer were erased.
    """

    listed: int
    erasable: int
    plans: int
    erased: float
    kept: float
    forward: float
    backward: float | None
    refused: int = 0

    def __str__(self) -> str:
        backward = "not run" if self.backward is None else f"within {self.backward:.1e}"
        return (
            f"Exact for {self.plans} random plans over {self.erasable} of {self.listed} structures "
            f"({self.erased:.1f} erased, {self.kept:.1%} of the parameters kept on average): outputs within "
            f"{self.forward:.1e}, gradients {backward}."
        )


def check_erasing(
    model: nn.Module,
    example_inputs: Any,
    *,
    plans: int = 4,
    share: float = 0.5,
    seed: int = 0,
    train: bool = True,
    as_graph: bool = False,
    least_erasable: int = 1,
    streams: bool = False,
) -> ErasingReport:
    """Assert that erasing structures of a model is exact: the cut network equals the masked one for random plans.

    Works on a copy with random norm statistics and scales; the model is not changed. Each of ``plans`` random plans
    erases a random valid set of structures, about ``share`` of them (`random_erasure`); every other plan also removes
    half of the units of every group that is left. Outputs are compared in eval mode and, with ``train``, the gradients
    of the kept parameters in train mode with dropout and drop-path off, both in float64.

    Args:
        as_graph: export the model and cut the program, as `niwaki.search_space` does; a program is of eval mode.
        least_erasable: how many structures must be erasable at least.
        streams: of a program, erase the stream itself, too (``erase="streams"`` of `niwaki.search_space`).

    Raises:
        AssertionError: a cut is not exact, or fewer structures are erasable than asked for, with the reasons.
        TraceError: the model does not run on these inputs, or cannot be exported.

    Example:
        >>> import torch
        >>> from niwaki.networks.demo_supernet import DemoSupNet
        >>> from niwaki.testing import check_erasing
        >>> report = check_erasing(DemoSupNet(3, 1, 4), torch.randn(2, 1, 6, 6), as_graph=True, least_erasable=5)
        >>> report.forward < 1e-10, report.backward < 1e-8
        (True, True)
    """
    calls = example_calls(example_inputs)
    warm_up(model, calls, train=train)
    with preserved(model):
        subject = randomised(duplicate(model), seed)
        if as_graph:
            subject = program_of(subject, calls[0], True)
            example_inputs = example_inputs[0] if isinstance(example_inputs, list) else example_inputs
        space = search_space(subject, example_inputs, erase="streams" if streams else True)
        erasable = sum(one.erasable for one in space.structures)
        if erasable < least_erasable:
            raise AssertionError(_too_few(space, erasable, least_erasable))
        rng = np.random.default_rng(seed)
        forward, backward, refused = 0.0, None, 0
        kept: list[float] = []
        erased: list[int] = []
        for number in range(plans):
            try:
                keep, plan, less = random_erasing_plan(space, rng, share, widths=bool(number % 2))
            except NiwakiError as cause:
                raise AssertionError(f"There is no random plan {number} (seed {seed}): {cause}") from cause
            refused += less
            try:
                outputs, gradients = compared(subject, plan, calls[0], train)
            except (NiwakiError, RuntimeError, ValueError, TypeError, IndexError, AttributeError) as cause:
                raise AssertionError(f"{_said(space, keep, number, seed)}: {cause}") from cause
            for what, found, tolerance in (
                ("outputs", outputs, TOLERANCE.get(outputs.precision, 1e-2)),
                ("gradients", gradients, GRADIENT_TOLERANCE),
            ):
                if found is not None and not found.within(tolerance):
                    of = f" (of {found.parameter!r})" if found.parameter else ""
                    raise AssertionError(
                        f"{_said(space, keep, number, seed)}: the {what}{of} of the cut network are "
                        f"{found.deviation:.1e} from those of the zeroed one (allowed {tolerance:.0e})."
                    )
            forward = max(forward, outputs.deviation)
            backward = backward if gradients is None else max(backward or 0.0, gradients.deviation)
            kept.append(space.cost(plan).params / max(1, space.cost().params))
            erased.append(len(erased_structures(space, keep)))
    return ErasingReport(
        len(space.structures),
        erasable,
        plans,
        float(np.mean(erased or [0])),
        float(np.mean(kept or [1.0])),
        forward,
        backward,
        refused,
    )


def compared(model: nn.Module, plan: Plan, call: ExampleCall, train: bool) -> tuple[Deviation, Deviation | None]:
    """How far the cut network is from the zeroed one: outputs and, with ``train``, gradients (None if there are
    none)."""
    rivals = Rivals(model, plan)
    return rivals.outputs(call), rivals.gradients(call) if train else None


def random_erasing_plan(
    space: SearchSpace, rng: np.random.Generator, share: float = 0.5, widths: bool = False
) -> tuple[BoolArray, Plan, int]:
    """A `random_erasure`, its plan, and how often the class could not do without all that was drawn, so that half as
    much was drawn again.

    Raises:
        PlanError: it cannot do without anything that was drawn, or it is an exported program.
    """
    refused = 0
    while True:
        keep = random_erasure(space, rng, share / 2**refused, widths)
        try:
            return keep, space.plan(keep), refused
        except PlanError:
            if isinstance(space.model, Program) or refused >= _REFUSALS:
                raise
            refused += 1


def random_erasure(space: SearchSpace, rng: np.random.Generator, share: float = 0.5, widths: bool = False) -> BoolArray:
    """The units that a random plan keeps, as a mask [num_units] for `SearchSpace.plan`: of the structures that can be
    erased about ``share`` go, in random order, each if it can be erased beside those before. ``widths``: of every
    other group, about half of the units go too."""
    keep = random_keep(space, rng) if widths else np.ones(space.num_units, dtype=bool)
    gates = {group.structure: group.first for group in space.groups if group.structure is not None}
    trial = None if space.erasures is None else space.erasures.trial()
    for number in rng.permutation(sorted(gates)).tolist():
        if trial is not None and rng.random() < share and trial.erase(number) is None:
            keep[gates[number]] = False
    return keep


def erased_structures(space: SearchSpace, keep: BoolArray) -> list[Structure]:
    """The structures that a choice of units asks to erase."""
    return [
        space.structures[group.structure]
        for group in space.groups
        if group.structure is not None and not keep[group.first]
    ]


def _said(space: SearchSpace, keep: BoolArray, number: int, seed: int) -> str:
    names = ", ".join(one.name for one in erased_structures(space, keep))
    return f"Random plan {number} (seed {seed}), which erases {names or 'nothing'}"


def _too_few(space: SearchSpace, erasable: int, least: int) -> str:
    reasons = Counter(one.refused for one in space.structures if one.refused is not None)
    listed = "; ".join(f"{reason} ({count} structures)" for reason, count in reasons.most_common(3))
    return (
        f"Only {erasable} of {len(space.structures)} structures can be erased, and {least} are asked for. The most "
        f"frequent reasons: {listed or 'none'}."
    )
