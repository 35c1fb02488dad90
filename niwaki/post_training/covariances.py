"""Covariances of what layers read, and of the gradients of what they give: one pass forwards and backwards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from niwaki.criteria.losses import Loss, check_loss, loss_of
from niwaki.criteria.measure import borrowed
from niwaki.errors import MethodError
from niwaki.repair.calibration import Forward, feed
from niwaki.repair.consumers import Reader
from niwaki.repair.norms_behind import NormsBehind
from niwaki.repair.positions import last_channel, windows
from niwaki.trace.eager import eagerly

_ROWS = 4096  # that are gathered at once


@dataclass(frozen=True, slots=True, eq=False)
class Covariances:
    """Of one weight: ``inputs`` [S, S], the covariance over positions of what it is multiplied by, about zero where no
    bias takes up a mean; and ``gradients`` [O, O], the sum over the positions of a batch of the products of the
    outputs' gradients, the mean over batches."""

    inputs: Tensor
    gradients: Tensor


class _Sums:
    """The sums of all layers with one weight, from hooks."""

    def __init__(self, layer: Reader, most: int) -> None:
        self._most, self.centred = most, True
        size = layer.weight[0].numel()
        self._products = torch.zeros(size, size, dtype=torch.float64, device=layer.weight.device)
        self._sum, self._count = self._products.new_zeros(size), 0
        self._gradients = self._products.new_zeros(len(layer.weight), len(layer.weight))

    def note(self, layer: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> None:
        """A call of the layer."""
        view = windows(layer, (args[0] if args else kwargs["input"]).detach())
        places = view.shape[: last_channel(layer, output).ndim - 1]
        picked = torch.arange(places.numel())
        if len(picked) > self._most:
            picked = torch.randperm(len(picked), generator=torch.Generator().manual_seed(0))[: self._most]
        for piece in torch.split(picked.to(view.device), _ROWS):
            rows = view[torch.unravel_index(piece, places)].flatten(1)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            self._products += rows.T @ rows
            self._sum += rows.sum(0)
        self._count += len(picked)
        if output.requires_grad:
            output.register_hook(lambda gradient: self._note_gradient(layer, gradient))  # type: ignore[no-untyped-call]

    def _note_gradient(self, layer: Reader, gradient: Tensor) -> None:
        rows = last_channel(layer, gradient).reshape(-1, len(self._gradients)).double()
        self._gradients += rows.T @ rows

    def over(self, batches: int) -> Covariances | None:
        """The covariances; None if the layer was not called."""
        if not self._count:
            return None
        mean = self._sum / self._count * self.centred
        return Covariances(self._products / self._count - mean.outer(mean), self._gradients / batches)


@eagerly()
def covariances(
    model: nn.Module,
    layers: Mapping[str, Reader],
    batches: Iterable[Any],
    loss_fn: Loss | None,
    positions: int,
    forward: Forward | None = None,
) -> dict[str, Covariances]:
    """The covariances of all ``layers`` that are called, in eval mode; the model is restored. Without a loss there are
    no gradients, and ``forward`` says how to run a batch, as for `niwaki.compensate`.

    Raises:
        MethodError: there are no batches, the loss is not a finite scalar with a gradient, or something is not finite.
    """
    data, bare = list(batches), {name: layer for name, layer in layers.items() if layer.bias is None}
    if not data:
        raise MethodError("There are no batches. Pass some inputs; a loader that is used up gives none.")
    most = max(1, positions // len(data))
    of_weight = {id(layer.weight): _Sums(layer, most) for layer in layers.values()}
    sums, watch = {name: of_weight[id(layer.weight)] for name, layer in layers.items()}, NormsBehind(model, bare)
    with borrowed(model, model.parameters()), ExitStack() as stack:
        for name, layer in layers.items():
            handle = layer.register_forward_hook(sums[name].note, prepend=True, with_kwargs=True)
            stack.callback(handle.remove)
        for name, layer in bare.items():
            handle = layer.register_forward_hook(lambda _, args, output, name=name: watch.note(name, output))
            stack.callback(handle.remove)
        for number, batch in enumerate(data):
            with torch.enable_grad(), watch if bare else nullcontext():
                if loss_fn is None:
                    feed(model, [batch], forward, number + 1)
                else:
                    loss = loss_of(loss_fn, model, batch)
            watch.forget()
            if loss_fn is None:
                continue
            check_loss(loss, number)
            torch.autograd.backward(loss)
    for name in bare.keys() - watch.found().keys():
        sums[name].centred = False
    found = {name: value for name, one in sums.items() if (value := one.over(len(data))) is not None}
    for name, value in found.items():
        if not bool(value.inputs.isfinite().all() and value.gradients.isfinite().all()):
            raise MethodError(
                f"What the layer {name!r} reads, or its gradient, is not finite. Look for diverged weights."
            )
    return found
