"""Every rule obeys the law on its samples, and the law rejects every wrong version of it."""

from __future__ import annotations

import ast
import pkgutil
from collections import defaultdict
from collections.abc import Collection, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from niwaki import rules
from niwaki.rules.attention import attention
from niwaki.rules.pointwise import pointwise
from niwaki.rules.registry import MUTANTS, NAMED, NONNEGATIVE, RULES, SAMPLES, Rule, Sample
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


class Absolute(TorchDispatchMode):
    """Calls ``operators`` without the signs of ``arguments``, and notes whether anything negative comes out."""

    def __init__(self, operators: Collection[OpOverload], arguments: Collection[str]) -> None:
        super().__init__()
        self.operators, self.arguments, self.called, self.negative = operators, arguments, 0, 0

    def __torch_dispatch__(self, func: OpOverload, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in self.operators:
            return func(*args, **(kwargs or {}))
        names = [argument.name for argument in func._schema.arguments]
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        for name in self.arguments:
            given[name] = tree_map_only(torch.Tensor, torch.abs, given.get(name))
        positional = [given.pop(name) for name in names[: len(args)]]
        result = func(*positional, **given)
        made = [tensor for tensor in tree_leaves(result) if isinstance(tensor, torch.Tensor)]
        self.called += 1
        self.negative += any(bool((tensor < 0).any()) for tensor in made if not tensor.is_complex())
        return result


@pytest.mark.parametrize("rule", [rule for rule in ALL if rule in NONNEGATIVE], ids=_name)
def test_what_a_rule_says_of_signs_is_true(rule: Rule) -> None:
    for claim in NONNEGATIVE[rule]:
        operators = claim.operators or {operator for operator, known in RULES.items() if known is rule}
        mode = Absolute(operators, claim.arguments)
        for example in SAMPLES[rule]:
            model = example.build().eval()
            with torch.no_grad(), mode:
                model()
        assert mode.called and not mode.negative


def test_every_operator_of_the_rules_exists_once() -> None:
    assert all(isinstance(operator, torch._ops.OpOverload) for operator in RULES)
    assert rules.find(torch.ops.aten.relu.default) is pointwise
    assert rules.find(torch.ops.aten._foreach_add.Scalar) is None
    with pytest.raises(ValueError, match="has a rule already, in .*joining"):
        rules.registry.rule(torch.ops.aten.cat.default)(pointwise)


def _registered() -> Iterator[tuple[str, str]]:
    """(file, operator) for every operator that a file names in ``rule(...)`` or ``named(...)``."""
    for found in pkgutil.iter_modules(rules.__path__):
        module = import_module(f"{rules.__name__}.{found.name}")
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("rule", "named"):
                for operator in eval(ast.unparse(ast.List(node.args, ast.Load())), vars(module)):
                    yield found.name, operator if isinstance(operator, str) else operator._schema.name


def test_the_overloads_of_an_operator_have_their_rules_in_one_file() -> None:
    """Whoever looks for the rule of `max` finds every overload of it in one file, and `max_` as well."""
    files = defaultdict(set)
    for file, operator in _registered():
        files[operator.removesuffix("_")].add(file)
    names = {operator._schema.name for operator in RULES} | NAMED.keys()
    assert files.keys() == {name.removesuffix("_") for name in names}, "some registration was not seen"
    assert not {operator: sorted(where) for operator, where in files.items() if len(where) > 1}
