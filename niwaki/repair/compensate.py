"""Least-squares compensation: new weights with which the remaining units best reproduce the output of a layer.

Units are seldom independent, so other weights for the remaining inputs restore a part of a layer's lost output (Pruning
with Compensation, arXiv:2108.13728). Layers are fitted in the order of the network, each on its inputs in the cut
network: errors of earlier layers are repaired, while fits on the inputs of the dense network would add them up.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.core.names import module_at, named_parameters
from niwaki.core.plan import Plan
from niwaki.core.scalars import is_number
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError, TraceError
from niwaki.repair.calibration import Forward, feed
from niwaki.repair.consumers import Reader, readers_of, removed_from
from niwaki.surgery.cut import cut_module, duplicate
from niwaki.surgery.history import check_plan
from niwaki.trace.eager import eagerly
from niwaki.trace.model_state import preserved

_TINY = torch.finfo(torch.float64).tiny


_FORWARDS = {nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}


@dataclass(frozen=True, slots=True)
class Fit:
    """Relative error of a layer's output in the cut network, as a fraction of the power of the dense output: with the
    old weights (``before``) and with the new ones (``after``). Earlier layers have their new weights in both. Measured
    on the batches of the fit."""

    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class Compensated:
    """The result of `compensate`. ``model``: a dense copy, ready for `niwaki.cut`. ``layers``: those with new weights.
    ``left``: the layers and tensors that lose inputs without new weights, each with the reason."""

    model: nn.Module
    layers: Mapping[str, Fit]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers have new weights. Relative error of each layer's output:"]
        lines += [f"  {name}: {fit.after:.2%} ({fit.before:.2%} without repair)" for name, fit in self.layers.items()]
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.left.items())])


@eagerly()
def compensate(
    space: SearchSpace,
    plan: Plan,
    batches: Iterable[Any],
    *,
    ridge: float = 1e-3,
    forward: Forward | None = None,
) -> Compensated:
    """Give the layers that read removed units the weights with which the remaining units best reproduce their outputs.

    Layers are fitted in the order of the network. For a layer W x + b, with x its input in the dense network and y its
    input in the cut one (where earlier layers have their new weights), over all positions of all batches,

        minimise over D, d:  E |W x - (W_S + D) y - d|^2 + ridge * mean(diag C_yy) |D|^2;   W_S += D, b += d

    W_S being the weights of the remaining inputs, C a covariance. Without a bias d is 0 and C not centred. Both
    networks run in eval mode, once over the data to find the order and then again for each layer, up to it. With little
    data, use a larger ``ridge``; weights that the data do not determine are not changed.

    Args:
        space: the search space of the model, which is not changed.
        plan: the plan of the cut.
        batches: inputs, which are all held; a tensor or tuple is passed by position, a dict by keywords. A few hundred
            images do.
        ridge: the penalty on changes of the weights, relative to the mean power of an input; above 0.
        forward: how to run the model on any other batch: ``lambda model, batch: model(batch[0])``.

    The cut of ``Compensated.model`` by the same plan has the new weights, and it is exact as that of any model; removed
    units keep their old weights until then.

    Raises:
        PlanError: the plan is for another network, or is not a plan.
        MethodError: there are no batches, or ``ridge`` is not a positive number.
        TraceError: the model does not run on a batch, or has no values (on the meta device).

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)).eval()
        >>> x = torch.randn(200, 4)
        >>> space = niwaki.search_space(net, x)
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> made = niwaki.compensate(space, plan, [x])
        >>> made.layers["2"].after < made.layers["2"].before
        True
        >>> small = niwaki.cut(made.model, plan)
    """
    if not is_number(ridge) or not 0 < ridge < float("inf"):
        raise MethodError(f"ridge={ridge!r} must be a number above 0, such as 1e-3.")
    check_plan(plan)
    plan.check_fits(space.model)
    if any(parameter.is_meta for parameter in space.model.parameters()):
        raise TraceError("The model is on the meta device, where it has no weights to change. Move it first.")
    model = duplicate(space.model)
    made, small = duplicate(model), cut_module(model, plan)
    readers = readers_of(space, plan, model)
    left = _others(space, plan, model, readers)
    uses = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    names = []
    for name, (layer, _) in readers.items():
        own = [value for value in layer._parameters.values() if value is not None]
        if type(layer).forward not in _FORWARDS:
            left[name] = f"{type(layer).__qualname__} computes something of its own"
        elif any(uses[id(value)] > 1 for value in own):
            left[name] = "it shares its weight or bias with another module"
        else:
            names.append(name)
    layers: dict[str, Fit] = {}
    data = list(batches)
    with preserved(model):
        for module in (*model.modules(), *small.modules()):
            module.training = False
        calls = _calls({name: readers[name][0] for name in names}, model, data, forward)
        for name in (*calls, *(name for name in names if name not in calls)):
            layer, removed = readers[name]
            inside = module_at(small, name)
            assert isinstance(inside, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
            try:
                gram = Gram(layer, inside)
                for batch, count in zip(data, calls.get(name, ()), strict=False):
                    pairs = [_inputs(*one, batch, forward, count) for one in ((model, layer), (small, inside))]
                    for x, y in zip(*pairs, strict=True):
                        gram.add(x, y)
                fitted = module_at(made, name)
                assert isinstance(fitted, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)
                layers[name] = _fit(fitted, removed, gram, float(ridge))
            except ValueError as why:
                left[name] = str(why)
                continue
            with torch.no_grad():
                for part, value in named_parameters(fitted):
                    inside.get_parameter(part).copy_(plan.change_of(f"{name}.{part}").of(value))
    return Compensated(made, layers, left)


def _calls(
    layers: Mapping[str, nn.Module], model: nn.Module, batches: Sequence[Any], forward: Forward | None
) -> dict[str, list[int]]:
    """The number of calls of each layer by each batch, in the order of the first calls; layers without calls are
    missing."""
    calls: dict[str, list[int]] = {}
    batch = 0

    def count(name: str) -> None:
        calls.setdefault(name, [0] * len(batches))[batch] += 1

    with contextlib.ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_pre_hook(lambda _, args, name=name: count(name))
            stack.callback(handle.remove)
        for batch, one in enumerate(batches):
            feed(model, [one], forward, batch + 1)
        if not batches:
            feed(model, [], forward)
    return calls


class _Enough(Exception):
    """Raised after the last call of the layer: the rest of the pass is not needed."""


def _inputs(model: nn.Module, layer: nn.Module, batch: Any, forward: Forward | None, count: int) -> list[Tensor]:
    """The inputs of ``layer`` in its first ``count`` calls on a batch."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Any, ...]) -> None:
        seen.append(args[0].detach())
        if len(seen) == count:
            raise _Enough

    if count:
        handle = layer.register_forward_pre_hook(look)
        try:
            with contextlib.suppress(_Enough):
                feed(model, [batch], forward)
        finally:
            handle.remove()
    if len(seen) < count:
        raise ValueError("it does not read the same positions in the cut network")
    return seen


def _fit(layer: Reader, removed: Tensor, gram: Gram, ridge: float) -> Fit:
    """Change the weights.

    Raises:
        ValueError: why they are not changed.
    """
    if not gram.count:
        raise ValueError("no batch reached it as a layer of its own")
    if not gram.finite:
        raise ValueError("what it reads is not finite")
    weight = layer.weight.detach().double().reshape(len(layer.weight), -1)
    stay = torch.ones(layer.weight.shape[1], dtype=torch.bool, device=weight.device)
    stay[removed] = False
    stay = stay.repeat_interleave(weight.shape[1] // len(stay))
    plain = [sums / gram.count for sums in (gram.xx, gram.xy, gram.yy)]
    x, y = gram.x / gram.count, gram.y / gram.count
    centred = [a - b.outer(c) for a, b, c in zip(plain, (x, x, y), (x, y, y), strict=True)]
    xx, xy, yy = plain if layer.bias is None else centred
    fewer = weight[:, stay]
    before, whole = _lost(weight, fewer, *plain), max(_lost(weight, 0 * fewer, xx, xy, yy), _TINY)
    power = float(yy.diagonal().mean())
    if power > 0:
        root, failed = torch.linalg.cholesky_ex(yy + ridge * power * torch.eye(len(yy)).to(yy))
        if int(failed):
            raise ValueError(f"its remaining inputs are too correlated for ridge={ridge:g}")
        fewer = fewer + torch.cholesky_solve((weight @ xy - fewer @ yy).T, root).T
    after = _lost(weight, fewer, xx, xy, yy)
    with torch.no_grad():
        if layer.bias is not None:
            layer.bias += (weight @ x - fewer @ y).to(layer.bias.dtype)
        weight[:, stay] = fewer
        layer.weight.copy_(weight.reshape(layer.weight.shape))
    return Fit(before / whole, after / whole)


def _lost(weight: Tensor, fewer: Tensor, xx: Tensor, xy: Tensor, yy: Tensor) -> float:
    """The mean square of ``weight`` x - ``fewer`` y, summed over outputs."""
    return max(float((weight @ xx * weight).sum() - 2 * (weight @ xy * fewer).sum() + (fewer @ yy * fewer).sum()), 0.0)


def _others(space: SearchSpace, plan: Plan, model: nn.Module, readers: Mapping[str, object]) -> dict[str, str]:
    """The parameters that read removed units in other ways, each with the reason why it has no new weights."""
    parameters = dict(named_parameters(model))
    known = {id(module_at(model, name).weight) for name in readers}
    return {
        place.tensor: "it is not a weight of a linear layer or of an ungrouped convolution"
        for place in space.dims
        if place.role.consumes
        and place.parameter
        and id(parameters[place.tensor]) not in known
        and removed_from(plan, place.tensor, place.dim, parameters) is not None
    }


_CONVOLVE: Mapping[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the weight's dimensions


class Gram:
    """Sums over all positions of the inputs x [I] of ``layer`` and the inputs y [S] of ``small``, its counterpart in
    another network: of their products, of the inputs, and the number of positions. An input of a linear layer is a
    feature, of a convolution a channel at a place of the kernel."""

    def __init__(self, layer: Reader, small: Reader) -> None:
        here, there = layer.weight[0].numel(), small.weight[0].numel()
        empty = torch.zeros(0, dtype=torch.float64, device=layer.weight.device)
        self._layers = layer, small
        self.xx, self.xy, self.yy = (empty.new_zeros(a, b) for a, b in ((here, here), (here, there), (there, there)))
        self.x, self.y = empty.new_zeros(here), empty.new_zeros(there)
        self.count = 0

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add the inputs of both in one call.

        Raises:
            ValueError: these are not the same positions.
        """
        for x_IN, y_SN in zip(*(_columns(*one) for one in zip(self._layers, (x, y), strict=True)), strict=True):
            if x_IN.shape[1] != y_SN.shape[1]:
                raise ValueError("it does not read the same positions in the cut network")
            self.xx += x_IN @ x_IN.T
            self.xy += x_IN @ y_SN.T
            self.yy += y_SN @ y_SN.T
            self.x += x_IN.sum(1)
            self.y += y_SN.sum(1)
            self.count += x_IN.shape[1]

    @property
    def finite(self) -> bool:
        """Whether all sums are finite."""
        return all(bool(value.isfinite().all()) for value in (self.xx, self.xy, self.yy))


def _columns(layer: Reader, x: Tensor) -> Iterator[Tensor]:
    """The numbers that the weights of a layer are multiplied by, [inputs, positions]; for a convolution one sample
    after another, since patches take kernel-size times the memory of a sample."""
    if isinstance(layer, nn.Linear):
        yield x.reshape(-1, layer.weight.shape[1]).T.double()
    else:
        for one in x if x.ndim == layer.weight.ndim else [x]:
            yield _patches(layer, one.unsqueeze(0).double())


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """The numbers that a convolution multiplies its weights by, [channels times kernel, positions], of one input [1, C,
    ...]."""
    channels, kernel = layer.weight.shape[1], layer.weight.shape[2:]
    size = kernel.numel()
    picks = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *kernel)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0,) * len(kernel)
    convolve = _CONVOLVE[layer.weight.ndim]
    picks = picks.repeat(channels, *[1] * (picks.ndim - 1))
    return convolve(x, picks, None, layer.stride, padding, layer.dilation, channels)[0].flatten(1)
