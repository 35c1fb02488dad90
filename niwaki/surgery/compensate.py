"""What removed units told the layers that read them, told by the units that stay.

Least-squares compensation (Pruning with Compensation, arXiv:2108.13728): units are seldom independent, so a layer can
win back part of what it loses by other weights for the inputs that are left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from niwaki.core.plan import Plan
from niwaki.core.scalars import is_number
from niwaki.core.space import SearchSpace
from niwaki.errors import MethodError, TraceError
from niwaki.surgery.cut import duplicate
from niwaki.surgery.feeding import Forward, feed
from niwaki.surgery.plans import check_plan
from niwaki.surgery.readers import Reader, readers_of, removed_from
from niwaki.trace.preserve import preserved

_CONVOLVE: Mapping[int, Callable[..., Tensor]] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}  # by the weight's dimensions
_FORWARDS = {nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward}


@dataclass(frozen=True, slots=True)
class Fit:
    """How much of the power of a layer's output the removed units take with them, with the weights as they were and
    with the new ones: 0 is nothing. Measured on the batches of the fit."""

    before: float
    after: float


@dataclass(frozen=True, slots=True, eq=False)
class Compensated:
    """``model``: a dense copy, ready for `niwaki.cut`. ``layers``: those with new weights. ``left``: the layers and
    tensors that lose inputs and keep their weights, each with the reason."""

    model: nn.Module
    layers: Mapping[str, Fit]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"{len(self.layers)} layers read what is left with new weights. Of their output is lost:"]
        lines += [f"  {name}: {fit.after:.2%} instead of {fit.before:.2%}" for name, fit in self.layers.items()]
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.left.items())])


def compensate(
    space: SearchSpace,
    plan: Plan,
    batches: Iterable[Any],
    *,
    ridge: float = 1e-3,
    forward: Forward | None = None,
) -> Compensated:
    """Give the layers that read removed units the weights with which the units that stay tell most of it.

    For a layer W x + b, with x_S what stays of its input and x_R what leaves, over all positions of all batches,

        minimise over D, d:  E |W_R x_R - D x_S - d|^2 + ridge * mean(diag C_SS) |D|^2;   W_S += D, b += d

    C being the covariance of x. Without a bias d is 0 and C not centred. Inputs are those of the dense network in eval
    mode, of all layers at once: one pass over the data. Little data ask for a larger ``ridge``; weights stay as they
    are where the data say nothing.

    Args:
        space: the search space of the model; the model is left as it was.
        plan: what is going to be cut.
        batches: inputs; a tensor or tuple is passed by position, a dict by keywords. A few hundred images do. For each
            layer a float64 matrix of all its inputs (channels times kernel) is held.
        ridge: how strongly changes of the weights are held back, relative to the mean power of an input; above 0.
        forward: how to run the model on a batch where that is not so: ``lambda model, batch: model(batch[0])``.

    The cut of ``Compensated.model`` by the same plan has the new weights, and the law holds for it as for any model;
    what the plan removes has the weights it had.

    Raises:
        PlanError: the plan is for another network.
        MethodError: there are no batches, or ``ridge`` is no positive number.
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
    readers = readers_of(space, plan, model)
    left = _others(space, plan, model, readers)
    uses = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    grams: dict[str, _Gram] = {}
    for name, (layer, _) in readers.items():
        own = [value for value in layer._parameters.values() if value is not None]
        if type(layer).forward not in _FORWARDS:
            left[name] = f"{type(layer).__qualname__} computes something of its own"
        elif any(uses[id(value)] > 1 for value in own):
            left[name] = "it shares its weight or bias with another module"
        else:
            grams[name] = _Gram(layer)
    with preserved(model):
        for module in model.modules():
            module.training = False
        handles = [readers[name][0].register_forward_pre_hook(gram.look) for name, gram in grams.items()]
        try:
            feed(model, batches, forward)
        finally:
            for handle in handles:
                handle.remove()
    layers: dict[str, Fit] = {}
    for name, gram in grams.items():
        layer, removed = readers[name]
        result = _fit(layer, removed, gram, float(ridge))
        if isinstance(result, Fit):
            layers[name] = result
        else:
            left[name] = result
    return Compensated(model, layers, left)


class _Gram:
    """Sums over all positions: of products of inputs of a layer [I, I], of inputs [I], and the number of positions."""

    def __init__(self, layer: Reader) -> None:
        weight = layer.weight
        self.entries = weight[0].numel()  # of a linear layer: its inputs; of a convolution: channels times kernel
        self.products = torch.zeros(self.entries, self.entries, dtype=torch.float64, device=weight.device)
        self.sums = torch.zeros(self.entries, dtype=torch.float64, device=weight.device)
        self.count = 0

    def look(self, layer: nn.Module, args: tuple[Any, ...]) -> None:
        """A forward pre-hook."""
        x = args[0].detach()
        if isinstance(layer, nn.Linear):
            self._add(x.reshape(-1, self.entries).T.double())
            return
        assert isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        for one in x if x.ndim == layer.weight.ndim else [x]:  # their patches are larger by the size of the kernel
            self._add(_patches(layer, one.unsqueeze(0).double()))

    def _add(self, inputs_IN: Tensor) -> None:
        self.products += inputs_IN @ inputs_IN.T
        self.sums += inputs_IN.sum(1)
        self.count += inputs_IN.shape[1]


def _patches(layer: nn.Conv1d | nn.Conv2d | nn.Conv3d, x: Tensor) -> Tensor:
    """What a convolution multiplies its weights with, [channels times kernel, positions], of one input [1, C, ...]."""
    channels, kernel = layer.weight.shape[1], layer.weight.shape[2:]
    size = kernel.numel()
    picks = torch.eye(size, dtype=x.dtype, device=x.device).reshape(size, 1, *kernel)
    padding = layer.padding
    if layer.padding_mode != "zeros":
        x, padding = F.pad(x, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), (0,) * len(kernel)
    convolve = _CONVOLVE[layer.weight.ndim]
    picks = picks.repeat(channels, *[1] * (picks.ndim - 1))
    return convolve(x, picks, None, layer.stride, padding, layer.dilation, channels)[0].flatten(1)


def _fit(layer: Reader, removed: Tensor, gram: _Gram, ridge: float) -> Fit | str:
    """Change the weights; or the reason why not."""
    if not gram.count:
        return "no batch reached it as a layer of its own"
    if not bool(gram.products.isfinite().all()):
        return "what it reads is not finite"
    weight = layer.weight.detach().double().reshape(len(layer.weight), -1)
    leaves = torch.zeros(layer.weight.shape[1], dtype=torch.bool, device=weight.device)
    leaves[removed] = True
    leaves = leaves.repeat_interleave(gram.entries // len(leaves))
    gone, stay = weight[:, leaves], ~leaves
    moments, mean = gram.products / gram.count, gram.sums / gram.count
    covariance = moments if layer.bias is None else moments - mean.outer(mean)
    among, across = covariance[stay][:, stay], covariance[leaves][:, stay]
    power = float(among.diagonal().mean())
    change = torch.zeros_like(weight[:, stay])
    if power > 0:
        among.diagonal().add_(ridge * power)  # of a copy
        root, failed = torch.linalg.cholesky_ex(among)
        if int(failed):
            return f"what is left of its inputs is too much alike for ridge={ridge:g}"
        change = torch.cholesky_solve((gone @ across).T, root).T
    whole = max(_power(weight, covariance), torch.finfo(torch.float64).tiny)
    before = _power(gone, moments[leaves][:, leaves])
    after = _power(torch.cat([gone, -change], 1), covariance[_order(leaves)][:, _order(leaves)])
    with torch.no_grad():
        weight[:, stay] += change
        layer.weight.copy_(weight.reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias += (gone @ mean[leaves] - change @ mean[stay]).to(layer.bias.dtype)
    return Fit(before / whole, after / whole)


def _order(leaves: Tensor) -> Tensor:
    """First what leaves, then what stays."""
    return torch.cat([leaves.nonzero().flatten(), (~leaves).nonzero().flatten()])


def _power(weight: Tensor, products: Tensor) -> float:
    """The mean square of ``weight`` x, summed over outputs."""
    return max(float((weight @ products * weight).sum()), 0.0)


def _others(space: SearchSpace, plan: Plan, model: nn.Module, readers: Mapping[str, object]) -> dict[str, str]:
    """The parameters that read removed units in other ways."""
    parameters = dict(model.named_parameters())
    known = {id(model.get_submodule(name).weight) for name in readers}
    return {
        place.tensor: "it is no weight of a linear layer or of an ungrouped convolution"
        for place in space.places
        if not place.produces
        and place.parameter
        and id(parameters[place.tensor]) not in known
        and removed_from(plan, place.tensor, place.dim, parameters) is not None
    }
