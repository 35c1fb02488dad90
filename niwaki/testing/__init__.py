"""The conformance kit: the same checks that niwaki's own tests use, for rules and models of yours.

Imports core, trace, program, rules, criteria, surgery, solve, verify and search.
"""

from niwaki.testing.erasing import ErasingReport, check_erasing, random_erasure
from niwaki.testing.models import ModelReport, check_model
from niwaki.testing.rules import RuleReport, check_rule, forgetting, statements

__all__ = [
    "ErasingReport",
    "ModelReport",
    "RuleReport",
    "check_erasing",
    "check_model",
    "check_rule",
    "forgetting",
    "random_erasure",
    "statements",
]
