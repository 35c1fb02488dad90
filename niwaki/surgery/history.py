"""Which plan a network was cut by, for as long as it lives."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import torch
from torch.export import ExportedProgram

from niwaki.core.compose import composed, difference
from niwaki.core.plan import Plan, structure_hash, tensor_shapes
from niwaki.errors import PlanError

_PLANS: WeakKeyDictionary[torch.nn.Module | ExportedProgram, Plan] = WeakKeyDictionary()


def check_plan(plan: object) -> None:
    """Raise `PlanError` if what was given is not a plan, such as a path."""
    if not isinstance(plan, Plan):
        raise PlanError(
            f"plan is a {type(plan).__qualname__}, but must be a niwaki.Plan: what niwaki.choose or method.plan() "
            "returned. niwaki.Plan.from_json(text) makes one of the text of a file, and niwaki.load(model, directory) "
            "a network of what niwaki.save wrote."
        )


def remember(network: torch.nn.Module | ExportedProgram, plan: Plan) -> None:
    """Note that ``network`` was cut by ``plan``."""
    _PLANS[network] = plan


def plan_of(network: torch.nn.Module | ExportedProgram) -> Plan | None:
    """The plan that ``network`` was cut by, if niwaki cut it in this process."""
    return _PLANS.get(network)


def inside(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """The module that the plan is for: the one given, or the only one inside a wrapper that has its tensors."""
    expected = {shape.name for shape in plan.shapes}
    if {shape.name for shape in tensor_shapes(model)} == expected:
        return model
    found = [child for child in model.children() if {shape.name for shape in tensor_shapes(child)} == expected]
    return found[0] if len(found) == 1 else model


def to_do(model: torch.nn.Module, plan: Plan) -> tuple[Plan, Plan]:
    """What is to be done to ``model`` as it is now, and what has then been done to the dense network.

    A plan is for the dense network or for the model as it is: a network that `niwaki.cut` made or `niwaki.shrink`
    shrank knows what has been done to it.

    Raises:
        PlanError: the plan fits neither.
    """
    done = plan_of(model)
    if done is None:
        if (inner := inside(model, plan)) is not model:
            name = next(name for name, child in model.named_children() if child is inner)
            raise PlanError(
                f"The plan is for the network that this {type(model).__qualname__} has in its attribute {name!r}. Pass "
                f"that: model.{name}."
            )
        plan.check_fits(model)
        return plan, plan
    if plan.structure == structure_hash(tensor_shapes(model)):
        plan.check_fits(model)
        return plan, composed(done, plan)
    if plan.structure == done.structure:
        left = difference(done, plan)
        left.check_fits(model)
        return left, plan
    plan.check_fits(model)  # says what differs
    return plan, plan
