"""The cut: a new module of the same class, with fewer rows and columns and the integers that go with them."""

from __future__ import annotations

from typing import Any, Literal, TypeVar, overload

import torch
from torch.export import ExportedProgram

from niwaki.core.copying import ModelCopier
from niwaki.core.edits.numbers import derived_attributes
from niwaki.core.integrations import registered
from niwaki.core.names import named_buffers, named_modules, named_parameters
from niwaki.core.plan import Plan
from niwaki.errors import NiwakiError, PlanError, first_line
from niwaki.program.convert import rebuilt
from niwaki.program.entry import calls_of
from niwaki.program.module import Program
from niwaki.surgery.history import check_plan, remember, subject_of, to_do
from niwaki.surgery.leftovers import forget_leftovers, share_beside, warn_of_leftovers
from niwaki.surgery.nonzero import warn_of_nonzero
from niwaki.surgery.unscaled import warn_of_unscaled

Network = TypeVar("Network", bound=torch.nn.Module)


@overload
def cut(model: ExportedProgram, plan: Plan, as_graph: bool = ..., example_inputs: Any = ...) -> ExportedProgram: ...
@overload
def cut(model: Network, plan: Plan, as_graph: Literal[False] = ..., example_inputs: Any = ...) -> Network: ...
@overload
def cut(model: torch.nn.Module, plan: Plan, as_graph: Literal[True], example_inputs: Any = ...) -> ExportedProgram: ...
def cut(
    model: torch.nn.Module | ExportedProgram, plan: Plan, as_graph: bool = False, example_inputs: Any = None
) -> torch.nn.Module | ExportedProgram:
    """A smaller copy of ``model`` that computes what the model with its removed units at zero would compute.

    The model itself is not touched. Parameters and buffers of the copy are new tensors on the same device, tied ones
    stay tied, ``requires_grad`` and the training mode are kept, gradients are not. All else is deep-copied: hooks and
    functions on the model refer to the copy, and what its code has a name for (a sentinel, a constant of its file)
    stays the same object. Tensors that the model has made for itself since `niwaki.search_space`, which may have the
    dense sizes, are left out with a warning.

    A method's plan removes units that are zero in the model it trained. Where they are not zero in ``model``, as in an
    average of the weights (EMA) or in a checkpoint from before the schedule's end, a warning says how far they are from
    it. Plans of `niwaki.choose` remove units that are not zero, and are cut without a warning.

    Args:
        model: the dense model, or the dense exported program; the result is of the same kind.
        plan: what stays.
        as_graph: export the model and cut the program; for plans of ``niwaki.search_space(..., as_graph=True)``. The
            result is a `torch.export.ExportedProgram`, whose ``module()`` runs. It takes inputs of the shapes it was
            exported with, and is what the model computes in eval mode.
        example_inputs: with ``as_graph``, the inputs to export the model with: of the same shapes as the plan's.

    Raises:
        PlanError: the plan is for another network, or no plan; or the model cannot be copied: something on it does not
            allow that, or a function on it refers to the model by a global name.
        TraceError: the model cannot be exported.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> niwaki.cut(net, plan)[0]
        Linear(in_features=4, out_features=4, bias=True)

        >>> program = torch.export.export(net, (torch.randn(1, 4),))
        >>> space = niwaki.search_space(program)
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> small = niwaki.cut(program, plan)
        >>> small.module()(torch.randn(1, 4)).shape
        torch.Size([1, 2])
    """
    check_plan(plan)
    if as_graph or isinstance(model, ExportedProgram):
        program = subject_of(model, None if isinstance(model, _GRAPHS) else calls_of(model, example_inputs)[0], True)
        check_kind(program, plan)
        left, whole = to_do(program, plan)
        warn_of_nonzero(program, left)
        warn_of_unscaled(program, left)
        return _rebuilt(program, left, whole)
    check_kind(model, plan)
    left, whole = to_do(model, plan)
    warn_of_nonzero(model, left)
    warn_of_unscaled(model, left)
    warn_of_leftovers(model)
    return _made(model, left, whole)


def cut_module(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """As `cut`, for callers to whom it does not matter whether what is removed is zero."""
    check_kind(model, plan)
    return _made(model, *to_do(model, plan))


def _made(model: torch.nn.Module, left: Plan, whole: Plan) -> torch.nn.Module:
    small = _carry_out(model, left, contents=True)
    for integration in registered():
        integration.after_cut(small, whole)
    remember(small, whole)
    return small


def cut_program(model: ExportedProgram, plan: Plan) -> ExportedProgram:
    """As `cut_module`, an exported program."""
    program = subject_of(model)
    check_kind(program, plan)
    return _rebuilt(program, *to_do(program, plan))


def _rebuilt(program: torch.nn.Module, left: Plan, whole: Plan) -> ExportedProgram:
    small = _carry_out(program, left, contents=True)
    assert isinstance(small, Program)
    made = rebuilt(small)
    remember(made, whole)
    return made


_GRAPHS = (ExportedProgram, Program)


def check_kind(model: torch.nn.Module, plan: Plan) -> None:
    """Raise `PlanError` if the plan edits numbers of the other kind (a graph's names can be no attribute's), or leaves
    out sizes that torch's modules remember, as plans of a graph do."""
    kinds = {edit.for_graph for edit in plan.module_edits} - {None}
    if not kinds:
        plan.check_positions()
    of_graph = True in kinds or (not kinds and bool(derived_attributes(model, plan.lengths, ())))
    if of_graph and not isinstance(model, Program):
        raise PlanError(
            "The plan was made for the graph of the model: it changes numbers of an exported program only. Cut with "
            "as_graph=True and example inputs, or pass the exported program."
        )
    if False in kinds and isinstance(model, Program):
        raise PlanError(
            "The plan was made for the model itself: it changes attributes of its modules, which an exported program "
            "does not have. Cut the model, without as_graph."
        )


def cut_empty(model: torch.nn.Module, plan: Plan) -> torch.nn.Module:
    """As `cut`, but the parameters hold zeros: enough to see whether the shapes fit."""
    return _carry_out(model, plan, contents=False)


def _carry_out(model: torch.nn.Module, plan: Plan, contents: bool) -> torch.nn.Module:
    replaced: dict[int, object] = {}
    for name, parameter in named_parameters(model):
        data = plan.change_of(name).of(parameter.detach(), contents)
        replaced[id(parameter)] = torch.nn.Parameter(data, requires_grad=parameter.requires_grad)
    for name, buffer in named_buffers(model):
        replaced[id(buffer)] = plan.change_of(name).of(buffer.detach())
    small = duplicate(model, replaced)
    forget_leftovers(small)
    edit_modules(small, plan)
    return small


def edit_modules(model: torch.nn.Module, plan: Plan) -> None:
    """Change the modules of ``model``, whose tensors have been changed, as ``plan`` wants."""
    modules = dict(named_modules(model))
    for edit in plan.module_edits:
        edit.apply(modules)


def duplicate(model: torch.nn.Module, replaced: dict[int, object] | None = None) -> torch.nn.Module:
    """A deep copy in which the tensors with the given identities are replaced (`ModelCopier`).

    Raises:
        PlanError: something that belongs to the model cannot be copied.
    """
    copier = ModelCopier(model, replaced or {})
    try:
        small: torch.nn.Module = copier.copied(model)
    except NiwakiError:
        raise
    except Exception as cause:  # copying runs code of the user's classes
        said = f": {first_line(cause)}" if str(cause) else ""
        raise PlanError(
            f"The model cannot be copied, and niwaki cuts a copy: the attribute {copier.at!r} fails with "
            f"{type(cause).__qualname__}{said}. Something in it (a lock, a generator, an open file) does not allow "
            "copy.deepcopy: remove it, or give its class __deepcopy__."
        ) from cause
    share_beside(model, small)
    return small
