"""The law for one rule: op(cut(x)) equals cut(op(zero(x)))."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch._ops import OpOverload

from niwaki import rules
from niwaki.core.space import BoolArray
from niwaki.errors import NiwakiError
from niwaki.rules.registry import Label, Rule, Sample
from niwaki.solve.build import Builder
from niwaki.solve.label import label
from niwaki.surgery.cut import cut
from niwaki.surgery.zero import zeroed
from niwaki.trace.graph import Graph
from niwaki.trace.tracer import tensors_in, trace

_TOLERANCE = 1e-10


@dataclass(frozen=True, slots=True)
class RuleReport:
    """What `check_rule` found: whether the sample calls the rule at all, how many units it leaves free, and each
    violation as a sentence."""

    called: bool
    units: int
    violations: tuple[str, ...]

    @property
    def lawful(self) -> bool:
        """Whether nothing was violated."""
        return not self.violations


def check_rule(rule: Rule, sample: Sample, instead: Rule | None = None, plans: int = 8, seed: int = 0) -> RuleReport:
    """Try a rule on one of its samples, by random plans, in float64.

    ``instead``: a version of the rule to use in its place (a mutant). Outputs of the sample are not pinned: what is left
    of them must be the surviving part of the zeroed module's outputs, and where the rule claims zeros there must be
    zeros.
    """

    def find(operator: OpOverload) -> Rule | None:
        known = rules.find(operator)
        return instead if instead is not None and known is rule else known

    torch.manual_seed(seed)
    model = sample.build().double().eval()
    graph = trace(model, [((), {})], modes=(False,))
    called = any(rules.find(node.operator) is rule for node in graph.runs[0].nodes)
    try:
        facts = label(graph, find, pin_outputs=False)
        builder = Builder(model, graph, facts, inner=True)
    except (ValueError, IndexError, TypeError, AttributeError) as cause:  # what a wrong rule may stumble over
        return RuleReport(called, 0, (f"labelling fails: {cause}",))
    rng = np.random.default_rng(seed)
    violations = []
    for _ in range(plans):
        problem = _violation(model, graph, facts.labels, builder, builder.random_keep(rng))
        if problem is not None:
            violations.append(problem)
    return RuleReport(called, builder.num_units, tuple(violations))


def _violation(
    model: torch.nn.Module, graph: Graph, labels: list[Label | None], builder: Builder, keep: BoolArray
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
            stays = torch.from_numpy(builder.survivors(axis, keep))
            if is_zero and bool(zero_output.index_select(dim, (~stays).nonzero().flatten()).any()):
                return f"entries removed along dimension {dim} of the output are not zero"
            expected = expected.index_select(dim, stays.nonzero().flatten())
        if small_output.shape != expected.shape:
            return f"the cut module gives the shape {list(small_output.shape)} instead of {list(expected.shape)}"
        if small_output.is_floating_point() and small_output.numel():
            gap = float((small_output - expected).abs().max())
            if not gap <= _TOLERANCE * max(1.0, float(expected.abs().max())):
                return f"the cut module's output differs by {gap:.1e}"
    return None
