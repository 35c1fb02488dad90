"""Check one rule: op(cut(x)) equals cut(op(zero(x)))."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FunctionType

import numpy as np
import torch
from torch._ops import OpOverload

from niwaki import rules
from niwaki.core.space import BoolArray
from niwaki.errors import NiwakiError
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import Rule, Sample
from niwaki.solve.build import Builder
from niwaki.solve.masks import random_keep
from niwaki.solve.propagate import propagate
from niwaki.surgery.cut import cut
from niwaki.surgery.zero import zeroed
from niwaki.trace.graph import Graph
from niwaki.trace.structures import tensors_in
from niwaki.trace.tracer import trace

# What `Call` does for rules by other statements, as `split` by `equate_rows`: no rule says these lines itself.
_OF_CALLS = frozenset(method.__code__ for method in vars(Call).values() if isinstance(method, FunctionType))


@dataclass(frozen=True, slots=True)
class RuleReport:
    """The result of `check_rule`: whether the sample calls the rule, the number of units that it leaves free, and each
    violation as a sentence."""

    called: bool
    units: int
    violations: tuple[str, ...]

    @property
    def lawful(self) -> bool:
        """Whether there are no violations."""
        return not self.violations


def check_rule(rule: Rule, sample: Sample, instead: Rule | None = None, plans: int = 8, seed: int = 0) -> RuleReport:
    """Try a rule on one of its samples, by random plans, in float64.

    ``instead``: a version of the rule to use in its place (a mutant). Outputs of the sample are not pinned: they must
    be the surviving part of the zeroed module's outputs, with zeros where the rule claims zeros.
    """

    def find(operator: OpOverload) -> Rule | None:
        known = rules.find(operator)
        return instead if instead is not None and known is rule else known

    torch.manual_seed(seed)
    model = sample.build().double().eval()
    graph = trace(model, [((), {})], modes=(False,))
    called = any(rules.find(node.operator) is rule for node in graph.runs[0].nodes)
    try:
        constraints = propagate(graph, find, pin_outputs=False, tolerant=False)
        builder = Builder(model, graph, constraints, inner=True)
    except (ValueError, IndexError, TypeError, AttributeError) as cause:  # errors that a wrong rule may raise
        return RuleReport(called, 0, (f"labelling fails: {cause}",))
    rng = np.random.default_rng(seed)
    violations = []
    for _ in range(plans):
        problem = _violation(
            model, graph, constraints.labels, builder, random_keep(builder.units, rng), sample.tolerance
        )
        if problem is not None:
            violations.append(problem)
    units = len(builder.units)
    constraints = propagate(graph, find, pin_outputs=False, allow_inexact=True, tolerant=False)
    if constraints.inexact:  # then only shapes and zeros are compared
        builder = Builder(model, graph, constraints, inner=True)
        for _ in range(plans):
            problem = _violation(
                model, graph, constraints.labels, builder, random_keep(builder.units, rng, 2), math.inf
            )
            if problem is not None:
                violations.append(problem)
    return RuleReport(called, units, tuple(violations))


def _violation(
    model: torch.nn.Module,
    graph: Graph,
    labels: list[Label | None],
    builder: Builder,
    keep: BoolArray,
    tolerance: float,
) -> str | None:
    try:
        plan = builder.space().plan(keep)
        small = cut(model, plan)
        with torch.no_grad():
            ours = list(tensors_in(small()))
    except (NiwakiError, RuntimeError, IndexError, ValueError) as cause:
        return f"the cut module fails: {cause}"
    with torch.no_grad():
        reference = list(tensors_in(zeroed(model, plan)()))
    for number, small_output, zero_output in zip(graph.runs[0].outputs, ours, reference, strict=True):
        made = labels[number]
        assert made is not None
        expected = zero_output
        for dim, (axis, is_zero) in enumerate(zip(made.axes, made.zero, strict=True)):
            if not axis.free:
                continue
            stays = torch.from_numpy(builder.units.survivors(axis, keep))
            if is_zero and bool(zero_output.index_select(dim, (~stays).nonzero().flatten()).any()):
                return f"entries removed along dimension {dim} of the output are not zero"
            expected = expected.index_select(dim, stays.nonzero().flatten())
        if small_output.shape != expected.shape:
            return f"the cut module gives the shape {list(small_output.shape)} instead of {list(expected.shape)}"
        if math.isfinite(tolerance) and small_output.is_floating_point() and small_output.numel():
            gap = float((small_output - expected).abs().max())
            if not gap <= tolerance * max(1.0, float(expected.abs().max())):
                return f"the cut module's output differs by {gap:.1e}"
    return None


Line = tuple[str, int]


def statements(rule: Rule, sample: Sample) -> set[Line]:
    """The source lines (file, line) on which ``rule`` constrains something in this sample."""
    heard: set[Line] = set()

    def listening(call: Call) -> Label | Sequence[Label] | None:
        return _listened(rule, call, _Listener(heard, None))

    check_rule(rule, sample, instead=listening, plans=0)
    return heard


def forgetting(rule: Rule, line: Line) -> Rule:
    """The rule without what it says on one source line: a mutant that its samples should expose."""

    def forgetful(call: Call) -> Label | Sequence[Label] | None:
        return _listened(rule, call, _Listener(set(), line))

    return forgetful


def _listened(rule: Rule, call: Call, listener: Callable[[], bool]) -> Label | Sequence[Label] | None:
    call.listener = listener
    try:
        return rule(call)
    finally:
        call.listener = None


@dataclass(frozen=True, slots=True, eq=False)
class _Listener:
    """Notes the lines on which a rule constrains something, and ignores what is said on one line."""

    heard: set[Line]
    deaf_to: Line | None

    def __call__(self) -> bool:
        speaker = sys._getframe(3)  # behind the statement, and the call's own question
        if speaker.f_code in _OF_CALLS:
            return True
        line = speaker.f_code.co_filename, speaker.f_lineno
        self.heard.add(line)
        return line != self.deaf_to
