"""Shrinking in place: the same module and parameter objects, smaller, and the training state that refers to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.optim import Optimizer
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from niwaki.core.integrations import registered
from niwaki.core.names import named_buffers, named_parameters
from niwaki.core.plan import Plan, structure_hash, tensor_shapes
from niwaki.errors import PlanError, ShrinkError
from niwaki.surgery.cut import check_kind, edit_modules
from niwaki.surgery.history import check_plan, inside, remember, to_do
from niwaki.surgery.leftovers import forget_leftovers, warn_of_leftovers
from niwaki.surgery.nonzero import warn_of_nonzero
from niwaki.surgery.optimizer_state import smaller_state
from niwaki.surgery.replaced import carry_over, replaced_parameters
from niwaki.surgery.unscaled import warn_of_unscaled


def shrink(
    model: nn.Module,
    plan: Plan,
    optimizer: Optimizer | None = None,
    ema: nn.Module | Iterable[nn.Module] = (),
) -> None:
    """Cut ``model`` by ``plan`` where it is, in the middle of training.

    Module, parameters and buffers stay the objects they are, with fewer entries; gradients, the optimizer's state and
    averaged copies lose the same entries, and Python attributes follow. So the optimizer still owns all parameters (it
    forgets those of structures that are erased), and hooks, schedulers and gradient scalers, which hold nothing of a
    parameter's shape, go on. A compiled model compiles once more. What is removed should be zero (`niwaki.check` tells
    how far from it): then the network computes what it computed before.

    Where an RMSNorm gets narrower its weights are rescaled, and the optimizer's averages with them; from then on these
    weights move at another pace than they would have.

    Args:
        model: the module itself, or one that wraps it (``torch.compile``). One that was shrunk before may be shrunk
            further, by a plan for the dense network or for the model as it is.
        plan: what stays. From the space of the dense network it must keep nothing that has left already.
        optimizer: its state follows: any state of the parameter's shape, or with one position in place of all in some
            dimensions; `niwaki.register_state_layout` is for others. An optimizer that couples the entries of a
            parameter (Muon, Adafactor's factored averages) takes other steps on a smaller one.
        ema: averaged copies of the model, such as ``torch.optim.swa_utils.AveragedModel``. Units that are zero in the
            model may not be zero yet in an average, which loses them all the same.

    A warning says so where units that a method has set to zero are not zero in the model or in a copy.
    Nothing is changed if an error is raised.

    Raises:
        PlanError: the plan is for another network or for a graph, or keeps what has left already.
        ShrinkError: a state of the optimizer cannot follow, a parameter is not a plain tensor, or the process belongs
            to a group of several, whose wrappers (``DistributedDataParallel``) would keep the old sizes.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
        >>> optimizer = torch.optim.AdamW(net.parameters())
        >>> space = niwaki.search_space(net, torch.randn(1, 4))
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> niwaki.shrink(net, plan, optimizer)
        >>> net[0], len(optimizer.param_groups[0]["params"])
        (Linear(in_features=4, out_features=4, bias=True), 4)
    """
    check_plan(plan)
    _check_alone()
    model = inside(model, plan)
    check_kind(model, plan)
    left, whole = to_do(model, plan)
    copies = averaged_copies(model, ema)
    for copy in copies:
        left.check_fits(copy)
    warn_of_nonzero(model, left)
    warn_of_unscaled(model, left)
    warn_of_leftovers(model)
    for copy in copies:
        warn_of_nonzero(copy, left, "an averaged copy of the model")
    actions: list[Callable[[], None]] = []
    if optimizer is not None:
        parameters: dict[str, Tensor] = dict(named_parameters(model))
        changes = {parameters[name]: change for name, change in left.changes.items() if name in parameters}
        actions += smaller_state(optimizer, changes)
    for module in (model, *copies):
        actions += _smaller_tensors(module, left)
    for action in actions:
        action()
    before = list(model.parameters())
    carried = replaced_parameters(model, left)
    for module in (model, *copies):
        forget_leftovers(module, like=model)
        edit_modules(module, left)
        for integration in registered():
            integration.after_cut(module, whole)
        remember(module, whole)
    carry_over(carried, model, left, optimizer)
    if optimizer is not None:
        _forget(optimizer, before, model)


def _forget(optimizer: Optimizer, before: Iterable[Tensor], model: nn.Module) -> None:
    """Take parameters out of ``optimizer`` that have left the model."""
    stay = {id(parameter) for parameter in model.parameters()}
    gone = {id(parameter) for parameter in before if id(parameter) not in stay}
    for group in optimizer.param_groups if gone else ():
        for parameter in group["params"]:
            if id(parameter) in gone:
                optimizer.state.pop(parameter, None)
        group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in gone]


def _check_alone() -> None:
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        raise ShrinkError(
            f"This process belongs to a group of {distributed.get_world_size()}, and wrappers such as "
            "DistributedDataParallel keep the old sizes of what they wrap. Cut at the end of training instead "
            "(niwaki.cut)."
        )


def averaged_copies(model: nn.Module, ema: nn.Module | Iterable[nn.Module]) -> list[nn.Module]:
    """The copies of ``model`` in ``ema``: averages of its weights, or modules that hold one each.

    Raises:
        PlanError: one of them has other tensors.
    """
    return [_copy(copy, model) for copy in ([ema] if isinstance(ema, nn.Module) else ema)]


def _copy(copy: nn.Module, model: nn.Module) -> nn.Module:
    """The copy of ``model`` in an average."""
    structure = structure_hash(tensor_shapes(model))
    for module in (copy, *copy.children()):
        if structure_hash(tensor_shapes(module)) == structure:
            return module
    raise PlanError(
        f"The averaged copy ({type(copy).__qualname__}) has not the tensors of the model, nor has a module directly "
        "inside it. Pass the copies that were made of this model, and each of them every time the model is shrunk."
    )


def _smaller_tensors(module: nn.Module, plan: Plan) -> list[Callable[[], None]]:
    actions = []
    for name, tensor in (*named_parameters(module), *named_buffers(module)):
        if name not in plan.changes:
            continue
        _check_plain(name, tensor)
        change, gradient = plan.changes[name], tensor.grad
        smaller = None if gradient is None else change.of_gradient(gradient.detach().to_dense())
        actions.append(_replacing(tensor, change.of(tensor.detach()), smaller))
    return actions


def _check_plain(name: str, tensor: object) -> None:
    if is_traceable_wrapper_subclass(tensor):
        raise ShrinkError(
            f"{name!r} is a {type(tensor).__qualname__}, and only plain tensors can be made smaller in place. Cut "
            "at the end of training instead (niwaki.cut)."
        )


def _replacing(tensor: Tensor, data: Tensor, gradient: Tensor | None) -> Callable[[], None]:
    def replace() -> None:
        tensor.grad = None
        if tensor.requires_grad:
            # Graphs that are still referenced (by the last step's loss, say) end in an accumulator of the old shape,
            # which would put a gradient of that shape into the parameter: it refuses from now on.
            get_gradient_edge(tensor).node.register_prehook(_refuse)
            # Of another dtype for a moment: that is when torch forgets the old accumulator and makes a new one.
            tensor.data = tensor.data.new_empty(0, dtype=_other(tensor.dtype))
        tensor.data = data
        tensor.grad = gradient

    return replace


def _other(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype != torch.float32 else torch.float64


def _refuse(*_: Any) -> None:
    raise ShrinkError(
        "This backward pass goes through a graph that was recorded before the network was shrunk, and its gradients "
        "have the old shapes. Compute the loss anew, and call backward before the optimizer's step."
    )
