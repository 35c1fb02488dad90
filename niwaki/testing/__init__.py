"""The conformance kit: the same checks that niwaki's own tests use, for rules and models of yours.

Imports core, trace, rules, surgery, solve, verify and search.
"""

from niwaki.testing.models import ModelReport, check_model
from niwaki.testing.rules import RuleReport, check_rule, forgetting, statements

__all__ = ["ModelReport", "RuleReport", "check_model", "check_rule", "forgetting", "statements"]
