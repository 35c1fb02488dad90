"""The first weights of implants: by least squares from data, or zero; otherwise a cut takes them from the weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.edits import Implant
from niwaki.core.edits.implant import CONVOLUTIONS, centre
from niwaki.core.names import named_modules
from niwaki.core.plan import Plan
from niwaki.errors import PlanError
from niwaki.repair.calibration import Forward, feed
from niwaki.surgery.cut import duplicate
from niwaki.surgery.zero import zeroed
from niwaki.trace.eager import eagerly

_RIDGE = 1e-6  # of the mean square of the inputs


@eagerly()
def fitted(model: nn.Module, plan: Plan, batches: Iterable[Any], forward: Forward | None = None) -> nn.Module:
    """A copy of the dense ``model`` in which the implants of ``plan`` have the weights that do best on data.

    ``niwaki.cut(fitted(model, plan, batches), plan)`` takes them from there. Without it an implant begins with the
    centre of its kernel, or with the best matrix of its rank. Here its outputs are as near as possible, in least
    squares, to those of the whole unit in the network without the removed units: a 1x1 kernel also does what it can for
    the entries around it, and a low rank serves the directions that inputs have. Biases take up the mean difference.

    Args:
        model: the dense network, which is not changed.
        plan: with implants.
        batches: inputs, no labels; a tensor or tuple is passed by position, a dict by keywords.
        forward: how to run the model on a batch where that is not so: ``lambda model, batch: model(batch[0])``.

    Raises:
        PlanError: the plan has no implants, or is for another network.
        MethodError: there are no batches.
        TraceError: the model does not run on one.

    Example:
        >>> import torch, niwaki
        >>> from niwaki import implants
        >>> _ = torch.manual_seed(0)
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(1, 20, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(20, 1, 3))
        >>> x = torch.randn(8, 1, 8, 8).cumsum(3)
        >>> space = niwaki.search_space(net, x)
        >>> plan = implants.hap(space, niwaki.score(space, "magnitude"), 0.5, implants=0.2)
        >>> near, centres = niwaki.cut(implants.fitted(net, plan, [x]), plan), niwaki.cut(net, plan)
        >>> whole = niwaki.cut(net, space.plan(space.keep_of(plan)))
        >>> bool((near(x) - whole(x)).square().mean() < (centres(x) - whole(x)).square().mean())
        True
    """
    edits = _edits(plan)
    others = replace(plan, edits=tuple(edit for edit in plan.edits if not isinstance(edit, Implant)))
    teacher, made = zeroed(model, others).eval(), duplicate(model)
    layers = dict(named_modules(teacher))
    seen = {edit.module: _RowProducts(edit, layers[edit.module]) for edit in edits}
    handles = [layers[path].register_forward_hook(moments.note, with_kwargs=True) for path, moments in seen.items()]
    try:
        feed(teacher, batches, forward)
    finally:
        for handle in handles:
            handle.remove()
    own = dict(named_modules(made))
    for path, moments in seen.items():
        moments.write(own[path])
    return made


@torch.no_grad()
def zero_implants(model: nn.Module, plan: Plan) -> nn.Module:
    """A copy of the dense ``model`` in which the implants of ``plan`` are zero, as those of HAP's released code are.

    Raises:
        PlanError: the plan has no implants.
    """
    made = duplicate(model)
    modules = dict(named_modules(made))
    for edit in _edits(plan):
        weight = modules[edit.module]._parameters["weight"]
        assert weight is not None
        weight.index_fill_(0, _rows(edit, weight.device), 0)
    return made


def _edits(plan: Plan) -> tuple[Implant, ...]:
    edits = plan.edits_of(Implant)
    if not edits:
        raise PlanError("The plan has no implants. Make one with niwaki.implants.choose, hap or implanted.")
    return edits


def _rows(edit: Implant, device: torch.device) -> Tensor:
    return torch.tensor(np.asarray(edit.slim), device=device)


@final
class _RowProducts:
    """Sums of products of what an implant reads, x, and what the whole rows make of it, y."""

    def __init__(self, edit: Implant, layer: nn.Module) -> None:
        self._edit, self._count = edit, 0
        self._dims = CONVOLUTIONS.get(type(layer), 0)
        self._stride = getattr(layer, "stride", ())
        self._sums: tuple[Tensor, ...] = ()  # of x, y, x x', x y'

    def note(self, layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], result: Tensor) -> None:
        """A forward hook."""
        x, y = (args[0] if args else kwargs["input"]).detach().double(), result.detach().double()
        if self._dims:
            for place, step in enumerate(self._stride):
                x = x.movedim(place - self._dims, 0)[::step].movedim(0, place - self._dims)
            x, y = x.movedim(-1 - self._dims, -1), y.movedim(-1 - self._dims, -1)
        x, y = x.flatten(0, -2), y.flatten(0, -2)[:, _rows(self._edit, y.device)]
        new = x.sum(0), y.sum(0), x.T @ x, x.T @ y
        self._sums = tuple(a + b for a, b in zip(self._sums, new, strict=True)) if self._sums else new
        self._count += len(x)

    @torch.no_grad()
    def write(self, layer: nn.Module) -> None:
        """Give the slim rows of ``layer`` the weights that do best; nothing if it never ran."""
        if not self._count:
            return
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        rows = _rows(self._edit, weight.device)
        x, y, xx, xy = (total.to(weight.device) / self._count for total in self._sums)
        if bias is not None:
            xx, xy = xx - torch.outer(x, x), xy - torch.outer(x, y)
        xx = xx + _RIDGE * xx.diagonal().mean().clamp(min=1e-30) * torch.eye(len(xx), dtype=xx.dtype, device=xx.device)
        if self._edit.rank is None:
            best = torch.linalg.solve(xx, xy).T  # [rows, inputs]
            kernel = torch.zeros_like(weight.index_select(0, rows))
            centre(kernel).copy_(best.view_as(centre(kernel)))
        else:
            whole = weight.index_select(0, rows).double()
            left, _, _ = torch.linalg.svd(whole @ torch.linalg.cholesky(xx), full_matrices=False)
            left = left[:, : self._edit.rank]
            best = left @ (left.T @ whole)
            kernel = best.to(weight.dtype)
        weight.index_copy_(0, rows, kernel)
        if bias is not None:
            bias.index_add_(0, rows, (y - bias.index_select(0, rows).double() - best @ x).to(bias.dtype))
