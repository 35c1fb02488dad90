"""Every rule obeys the law on its samples, and the law rejects every wrong version of it."""

from __future__ import annotations

import pytest

from niwaki.rules.pointwise import pointwise
from niwaki.rules.registry import MUTANTS, RULES, SAMPLES, Rule, Sample
from niwaki.testing import check_rule

ALL: list[Rule] = sorted({*RULES.values(), pointwise}, key=lambda rule: (rule.__module__, rule.__qualname__))


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
    assert report.lawful, report.violations[0]


@pytest.mark.parametrize("rule", ALL, ids=_name)
def test_some_sample_leaves_units(rule: Rule) -> None:
    assert any(check_rule(rule, sample, plans=0).units for sample in SAMPLES[rule])


@pytest.mark.parametrize(
    ("rule", "mutant"), [pytest.param(r, m, id=f"{_name(r)}-{m.__qualname__}") for r in ALL for m in MUTANTS[r]]
)
def test_the_law_rejects_mutants(rule: Rule, mutant: Rule) -> None:
    assert any(not check_rule(rule, sample, instead=mutant).lawful for sample in SAMPLES[rule])
