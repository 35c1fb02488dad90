"""The linear maps of a layer, each as a matrix, what it is multiplied by, and what it gives at every position."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from niwaki.core.plan import Plan
from niwaki.repair.positions import TRANSPOSED, Convolved, last_channel, windows
from niwaki.repair.uptake import Uptake, uptakes

_OWN_OUTPUT = (nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)  # their output is not that of the map
_KNOWN = {
    *(kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)),
    *(kind.forward for kind in TRANSPOSED),
    *(nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward, nn.RNNCell.forward, nn.LSTMCell.forward, nn.GRUCell.forward),
    nn.MultiheadAttention.forward,
}
_ROUNDINGS = 64


@dataclass(frozen=True, slots=True, eq=False)
class LinearMap:
    """One sum of ``layer``, as `Uptake` describes it. ``groups``: outputs of one group sum over its inputs alone.

    ``inside``: the layer makes something else of the sum before it returns, which is then computed from its argument.
    ``tried``: it is not known what the class computes, and `holds` has to say. ``attention``: the module that the layer
    is the ``out_proj`` of, which multiplies by its weight without a call of the layer; arguments and outputs are then
    those of the module.
    """

    layer: nn.Module
    sums: Uptake
    groups: int = 1
    inside: bool = False
    tried: bool = False
    attention: nn.MultiheadAttention | None = None

    @property
    def called(self) -> nn.Module:
        """The module whose calls have the arguments and outputs."""
        return self.layer if self.attention is None else self.attention

    @property
    def transposed(self) -> bool:
        """Whether the first dimension of the weight is that of the inputs of a convolution."""
        return isinstance(self.layer, TRANSPOSED)

    @property
    def key(self) -> tuple[str, int, int]:
        """What tells it from the other maps of its layer: the weight's own name, its dimension, the argument."""
        own = {id(value): name for name, value in self.layer._parameters.items()}
        return own[id(self.sums.weight)], self.sums.dim, self.sums.position

    def title(self, name: str) -> str:
        """``name``, that of the layer, and what tells this map from others where a layer has several."""
        if isinstance(self.layer, nn.MultiheadAttention):
            return f"{name}.{self.sums.argument}"
        return f"{name}.{self.key[0]}" if self.inside else name

    def counterpart(self, layer: nn.Module) -> LinearMap:
        """The same map of ``layer``, a copy of this one's layer, or what is left of it."""
        return next(one for one in linear_maps(layer) if one.key == self.key)

    def matrix(self) -> Tensor:
        """A copy in float64, [groups, outputs, inputs, places of a kernel]."""
        weight = self.sums.weight.detach()
        if self.transposed:  # as a convolution: of the inputs with zeros between them, by the kernel in reverse
            parts = weight.reshape(self.groups, -1, *weight.shape[1:]).transpose(1, 2).flip(*range(3, weight.ndim + 1))
            return parts.flatten(3).double() if weight.ndim > 2 else parts.unsqueeze(3).double()
        rows = weight.movedim(self.sums.dim, 1)[self.sums.rows]
        return rows.reshape(self.groups, len(rows) // self.groups, rows.shape[1], -1).to(torch.float64, copy=True)

    def write(self, matrix: Tensor) -> None:
        """Give the layer the weights ``matrix``, of the shape that `matrix` has."""
        weight = self.sums.weight.detach()
        if self.transposed:
            shape = self.groups, weight.shape[1], len(weight) // self.groups, *weight.shape[2:]
            parts = matrix.reshape(shape).flip(*range(3, weight.ndim + 1)).transpose(1, 2)
            weight.copy_(parts.reshape(weight.shape))
        else:
            rows = weight.movedim(self.sums.dim, 1)[self.sums.rows]  # a view
            rows.copy_(matrix.reshape(rows.shape))

    def add_to_bias(self, shift: Tensor) -> None:
        """Add ``shift`` [outputs]."""
        assert self.sums.bias is not None
        self.sums.bias.add_(shift.to(self.sums.bias.dtype))

    def removed(self, plan: Plan, name: str) -> bool:
        """Whether inputs leave by the plan, or groups with theirs; ``name``: the full name of the weight."""
        dims = plan.tensors.get(name, {})
        return self.sums.dim in dims or (self.groups > 1 and 0 in dims)

    def stay(self, plan: Plan, name: str) -> tuple[list[int], list[list[int]]]:
        """The groups that stay, and in each of them the inputs that do, as many in all.

        Raises:
            ValueError: they are not as many.
        """
        kept, size = plan.tensors.get(name, {}), self.sums.weight.shape
        first, second = (list(kept.get(dim, range(size[dim]))) for dim in (0, 1))
        if self.groups == 1:
            return [0], [first if self.sums.dim == 0 else second]
        each = size[0] // self.groups  # entries of the first dimension in a group
        groups = sorted({place // each for place in first})
        inside = [[place % each for place in first if place // each == group] for group in groups]
        if self.sums.dim == 1:
            inside = [second] * len(groups)
        if len({len(one) for one in inside}) > 1:
            raise ValueError("its groups keep different numbers of inputs")
        return groups, inside

    def read(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
        """The argument that is summed over, in a call of the layer.

        Raises:
            ValueError: it is called in another way.
        """
        if self.attention is not None:
            return _heads(self.attention, args, kwargs)
        position, name = self.sums.position, self.sums.argument
        given: Any = args[position] if len(args) > position else kwargs.get(name, args[0] if args else None)
        given = given.data if isinstance(given, PackedSequence) else given
        if not isinstance(given, Tensor) or given.is_nested:
            raise ValueError(f"it reads a {'nested tensor' if isinstance(given, Tensor) else type(given).__qualname__}")
        return given

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Tensor:
        """What `outputs` needs of a call of the dense layer.

        Raises:
            ValueError: it is called in another way.
        """
        if self.inside:
            return self.read(args, kwargs)
        if self.attention is not None:
            output = output[0]  # beside the weights of the attention
        if not isinstance(output, Tensor) or output.is_nested:
            raise ValueError(f"it gives a {type(output).__qualname__}")
        return output

    def places(self, given: Tensor) -> Tensor:
        """A view of what `given` found, [positions ..., channels]."""
        return given if self.inside or not isinstance(self.layer, Convolved) else last_channel(self.layer, given)

    def outputs(self, rows: Tensor) -> Tensor:
        """The sums without a bias from rows of `places`, [N, groups, outputs]."""
        if self.inside:
            rows = rows @ self.sums.weight.detach().to(rows.dtype).movedim(self.sums.dim, 1)[self.sums.rows].T
        elif self.sums.bias is not None:
            rows = rows - self.sums.bias.to(rows.dtype)
        return rows.reshape(len(rows), self.groups, -1)

    def windows(self, given: Tensor, sides: Sequence[int] | None = None) -> Tensor:
        """A view of what `read` found, [positions ..., what is summed over at one of them]; ``sides``: those of the
        output, which a call of a transposed convolution may choose."""
        return windows(self.layer, given, sides)

    def holds(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Tensor) -> bool:
        """Whether the layer gave what the map says in a call, up to roundings.

        Raises:
            ValueError: it is called in another way.
        """
        weight, bias = self.sums.weight.detach(), self.sums.bias
        if type(self.layer).forward in _KNOWN:  # and the instance has another
            expected = type(self.layer).forward(self.layer, *args, **kwargs)
        else:
            expected = nn.functional.linear(self.read(args, kwargs), weight.movedim(self.sums.dim, 1), bias)
        if expected.shape != output.shape or expected.dtype != output.dtype:
            return False
        near = _ROUNDINGS * torch.finfo(output.dtype).eps * float(output.abs().nan_to_num().max()) if len(output) else 0
        return torch.allclose(expected, output, rtol=0.0, atol=near, equal_nan=True)


def linear_maps(layer: nn.Module) -> list[LinearMap]:
    """The linear maps of ``layer``: of linear layers, convolutions and transposed ones, grouped or not, of what
    recurrent layers and attention read, and of any layer with one matrix, which may or may not be multiplied by it."""
    inside = isinstance(layer, _OWN_OUTPUT)
    found = [LinearMap(layer, one, inside=inside) for one in uptakes(layer)]
    if isinstance(layer, nn.Linear) and not is_of_torch(layer):
        return [replace(found[0], tried=True)]
    if isinstance(layer, Convolved) and layer.groups > 1:
        bias = None if layer.bias is None else layer.bias.detach()
        dim = 0 if isinstance(layer, TRANSPOSED) else 1
        found = [LinearMap(layer, Uptake(layer.weight, dim, bias, channel=1 - layer.weight.ndim), layer.groups)]
    if found and isinstance(layer, Convolved) and not is_of_torch(layer) and type(layer).forward in _KNOWN:
        return [replace(found[0], tried=True)]
    if found or is_of_torch(layer):
        return found
    return list(_products(layer))


def _heads(attention: nn.MultiheadAttention, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """What the heads give for the arguments, side by side: the output of a module whose ``out_proj`` changes
    nothing."""
    weight = attention.out_proj.weight
    width = weight.shape[1]
    same = nn.Linear(width, width, device="meta")
    same.weight = nn.Parameter(torch.eye(width, dtype=weight.dtype, device=weight.device), requires_grad=False)
    same.bias = nn.Parameter(weight.new_zeros(width), requires_grad=False)
    twin = copy.copy(attention)  # with the same parameters
    twin.__dict__["_modules"] = {**attention._modules, "out_proj": same}
    found: Tensor = nn.MultiheadAttention.forward(twin, *args, **kwargs)[0]
    return found


def is_known(layer: nn.Module, maps: Sequence[LinearMap]) -> bool:
    """Whether the layer computes what its ``maps`` say, or whether they are tried."""
    return is_of_torch(layer) or all(one.tried for one in maps)


def of_its_own(layer: nn.Module) -> str:
    """The reason to give for a layer that computes something else."""
    own = "the forward of this instance" if "forward" in vars(layer) else type(layer).__qualname__
    return f"{own} computes something of its own"


def is_of_torch(layer: nn.Module) -> bool:
    """Whether the code that runs is torch's own: neither the class nor the instance has another ``forward``."""
    return "forward" not in vars(layer) and type(layer).forward in _KNOWN


def _products(layer: nn.Module) -> Iterator[LinearMap]:
    """The two ways to multiply by the only matrix of a layer without modules of its own."""
    own = {name: value for name, value in layer._parameters.items() if value is not None}
    weight, bias = own.pop("weight", None), own.pop("bias", None)
    if own or layer._modules or weight is None or weight.ndim != 2 or (bias is not None and bias.ndim != 1):
        return
    for dim in (0, 1):
        if bias is None or len(bias) == weight.shape[1 - dim]:
            values = None if bias is None else bias.detach()
            yield LinearMap(layer, Uptake(weight, dim, values), tried=True)
