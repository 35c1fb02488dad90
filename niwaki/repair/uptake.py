"""Biases that can take up a constant: the sum that constant inputs of a layer add to its output."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

_BORDER = "it pads with zeros, so the constant is missing at the border"
_STRIDE = (
    "the output of a transposed convolution for a constant is not constant: it depends on kernel, stride and padding"
)
_OWN = "its class computes something of its own"


@dataclass(frozen=True, slots=True, eq=False)
class Uptake:
    """One sum of a layer: ``rows`` of ``weight``, summed over its dimension ``dim`` with an input, and ``bias`` added.

    The input is the layer's argument number ``position``, called ``argument``; the sum is over its dimension
    ``channel``, counted from the end. ``bias`` shares the memory of the layer's parameter. ``otherwise``: the reason to
    give if a trial shows that the bias is not enough.
    """

    weight: Tensor
    dim: int
    bias: Tensor | None
    position: int = 0
    argument: str = "input"
    channel: int = -1
    rows: slice = field(default_factory=lambda: slice(None))
    otherwise: str = _OWN

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], removed: Tensor) -> Tensor | None:
        """The removed inputs in one call of the layer, [positions, removed]; None if it is called in another way."""
        given: Any = args[self.position] if len(args) > self.position else kwargs.get(self.argument)
        given = given.data if isinstance(given, PackedSequence) else given
        if not isinstance(given, Tensor) or given.ndim < -self.channel:
            return None
        values: Tensor = given.index_select(self.channel, removed).movedim(self.channel, -1)
        return values.reshape(-1, len(removed))

    def shift(self, constant: Tensor, removed: Tensor) -> Tensor:
        """The sum that removed inputs of the values ``constant`` [removed] add to each row, [rows]."""
        inner = self.weight.detach().index_select(self.dim, removed).movedim(self.dim, 0)
        added: Tensor = torch.tensordot(constant.to(inner.dtype), inner[:, self.rows], dims=1)
        return added.reshape(len(added), -1).sum(1)


def uptakes(layer: nn.Module) -> Iterator[Uptake]:
    """The sums of ``layer`` that have a bias, or could have one."""
    if isinstance(layer, nn.Linear):
        yield Uptake(layer.weight, 1, _values(layer.bias))
    elif isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups == 1:
        padded = any(layer._reversed_padding_repeated_twice) and layer.padding_mode == "zeros"
        channel = 1 - layer.weight.ndim
        yield Uptake(layer.weight, 1, _values(layer.bias), channel=channel, otherwise=_BORDER if padded else _OWN)
    elif isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) and layer.groups == 1:
        yield Uptake(layer.weight, 0, _values(layer.bias), channel=1 - layer.weight.ndim, otherwise=_STRIDE)
    elif isinstance(layer, nn.RNNBase):
        for suffix in ("_l0", "_l0_reverse") if layer.bidirectional else ("_l0",):
            ingoing = _values(layer._parameters.get(f"bias_ih{suffix}"))
            yield Uptake(layer.get_parameter(f"weight_ih{suffix}"), 1, ingoing)
    elif isinstance(layer, nn.RNNCellBase):
        yield Uptake(layer.weight_ih, 1, _values(layer._parameters.get("bias_ih")))
    elif isinstance(layer, nn.MultiheadAttention):
        width, biases = layer.embed_dim, _values(layer._parameters.get("in_proj_bias"))
        for number, argument in enumerate(("query", "key", "value")):
            packed, alone = (layer._parameters[f"{name}_proj_weight"] for name in ("in", argument[0]))
            rows = slice(number * width, (number + 1) * width)
            bias = None if biases is None else biases[rows]  # shares its memory
            if packed is not None:
                yield Uptake(packed, 1, bias, number, argument, rows=rows)
            elif alone is not None:
                yield Uptake(alone, 1, bias, number, argument)


def _values(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach()
