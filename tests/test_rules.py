"""Every rule obeys the law on its samples, and the law rejects every wrong version of it."""

from __future__ import annotations

import pytest
import torch

from niwaki import rules
from niwaki.rules.attention import attention
from niwaki.rules.pointwise import pointwise
from niwaki.rules.registry import MUTANTS, RULES, SAMPLES, Rule, Sample
from niwaki.testing import check_rule, forgetting, statements

ALL: list[Rule] = sorted({*RULES.values(), pointwise}, key=lambda rule: (rule.__module__, rule.__qualname__))

# Fused kernels do not check their shapes: a statement forgotten there ends the process instead of the test.
UNCHECKED: list[Rule] = [attention]


def _name(rule: Rule) -> str:
    return f"{rule.__module__.rsplit('.', 1)[-1]}.{rule.__qualname__}"


@pytest.mark.parametrize("rule", ALL, ids=_name)
def test_rule_has_samples_and_mutants(rule: Rule) -> None:
    assert SAMPLES.get(rule), "a rule needs a sample"
    assert MUTANTS.get(rule), "a rule needs a wrong version that the law rejects"


@pytest.mark.parametrize(
    ("rule", "sample"),
    [pytest.param(rule, sample, id=f"{_name(rule)}-{i}") for rule in ALL for i, sample in enumerate(SAMPLES[rule])],
)
def test_rule_is_lawful(rule: Rule, sample: Sample) -> None:
    report = check_rule(rule, sample)
    assert report.called, "the sample never calls the rule"
    assert report.units, "the sample leaves no units, so nothing is tried"
    assert report.lawful, report.violations[0]


@pytest.mark.parametrize(
    ("rule", "mutant"), [pytest.param(r, m, id=f"{_name(r)}-{m.__qualname__}") for r in ALL for m in MUTANTS[r]]
)
def test_the_law_rejects_mutants(rule: Rule, mutant: Rule) -> None:
    assert any(not check_rule(rule, sample, instead=mutant).lawful for sample in SAMPLES[rule])


@pytest.mark.parametrize("rule", [rule for rule in ALL if rule not in UNCHECKED], ids=_name)
def test_everything_a_rule_says_is_needed(rule: Rule) -> None:
    """Without any one of its statements, the rule breaks the law on one of its samples."""
    said = {line for sample in SAMPLES[rule] for line in statements(rule, sample)}
    for line in sorted(said):
        wrong = forgetting(rule, line)
        assert any(not check_rule(rule, sample, instead=wrong).lawful for sample in SAMPLES[rule]), line


def test_every_operator_of_the_rules_exists_once() -> None:
    assert all(isinstance(operator, torch._ops.OpOverload) for operator in RULES)
    assert rules.find(torch.ops.aten.relu.default) is pointwise
    assert rules.find(torch.ops.aten._foreach_add.Scalar) is None
    with pytest.raises(ValueError, match="has a rule already, in .*combining"):
        rules.registry.rule(torch.ops.aten.cat.default)(pointwise)
