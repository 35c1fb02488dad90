"""Which plan a network was cut by. The network carries it itself, and so do its copies, pickled ones too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram

from niwaki.core.compose import composed, difference
from niwaki.core.names import module_at, named_buffers, named_parameters
from niwaki.core.objects import Note
from niwaki.core.plan import Plan, smaller_shapes, structure_hash, tensor_shapes
from niwaki.errors import PlanError
from niwaki.program.entry import program_of
from niwaki.trace.structures import ExampleCall

_NAME = "_niwaki_plan"  # in the dictionary of the network


@dataclass(frozen=True, slots=True)
class _CutBy(Note):
    """Pickled as the text of the plan: a pickled network is read where niwaki is not installed, too."""

    plan: Plan

    def __deepcopy__(self, memo: dict[int, Any]) -> _CutBy:
        return self

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.plan.to_json(),)


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
    _carrier(network)[_NAME] = _CutBy(plan)


def plan_of(network: torch.nn.Module | ExportedProgram) -> Plan | None:
    """The plan that ``network``, or what it is a copy of, was cut by, if niwaki cut it.

    Raises:
        PlanError: it was pickled by a newer niwaki.
    """
    note = _carrier(network).get(_NAME)
    if isinstance(note, str):
        return Plan.from_json(note)
    return note.plan if isinstance(note, _CutBy) else None


def subject_of(
    network: torch.nn.Module | ExportedProgram, call: ExampleCall | None = None, as_graph: bool = False
) -> torch.nn.Module:
    """As `program_of`: the module to cut or check. That of an exported program which niwaki has cut knows what has been
    done to it."""
    made = program_of(network, call, as_graph)
    done = plan_of(network) if isinstance(network, ExportedProgram) else None
    if done is not None:
        remember(made, done)
    return made


def _carrier(network: torch.nn.Module | ExportedProgram) -> dict[str, Any]:
    """Of a compiled module, the one inside."""
    return module_at(network, "").__dict__ if isinstance(network, torch.nn.Module) else network.__dict__


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
        return plan, composed(done, plan) if _has_what_it_left(done, model) else plan
    if plan.structure == done.structure:
        left = difference(done, plan)
        left.check_fits(model)
        return left, plan
    plan.check_fits(model)  # says what differs
    return plan, plan


def _has_what_it_left(done: Plan, model: torch.nn.Module) -> bool:
    """Whether ``model`` has the parameters that ``done`` left it with. One that has been given other layers since is a
    dense network again."""
    parameters = {name: tuple(parameter.shape) for name, parameter in named_parameters(model)}
    left = {shape.name: shape.shape for shape in smaller_shapes(done)}
    buffers = {name for name, _ in named_buffers(model)}
    return parameters.items() <= left.items() and left.keys() <= parameters.keys() | buffers
