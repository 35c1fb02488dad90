"""Follow axes through backward passes, which a network runs in its forward pass where its output is a gradient.

That of an activation is the gradient times a slope, entry by entry: where the gradient of a removed unit is zero, so is
the result, whatever the slope. (The backward operators of tanh, sigmoid, SiLU, GELU and ReLU are tagged as pointwise.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.axis import concatenate
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.pointwise import broadcast, pointwise
from niwaki.rules.registry import mutant, rule, sample

aten = torch.ops.aten

# Element-wise, but not tagged so (yet).
rule(
    aten.elu_backward.default,
    aten.hardshrink_backward.default,
    aten.hardsigmoid_backward.default,
    aten.hardswish_backward.default,
    aten.hardtanh_backward.default,
    aten.leaky_relu_backward.default,
    aten.mish_backward.default,
    aten.rrelu_with_noise_backward.default,
    aten.softplus_backward.default,
    aten.softshrink_backward.default,
)(pointwise)


@rule(aten.log_sigmoid_backward.default)
def log_sigmoid_backward(call: Call) -> Label:
    """Gradient times slope. The buffer of the forward pass is empty on some devices."""
    gradient: Label = call["grad_output"]
    return call.label(broadcast(call, [gradient, call["self"]]), gradient.zero)


@rule(aten._prelu_kernel_backward.default)
def prelu_backward(call: Call) -> list[Label]:
    """The gradients of the input, and of the slope at each entry, which is gradient times input where that is
    negative."""
    gradient, x = call["grad_output"], call["self"]
    axes = broadcast(call, [gradient, x, call["weight"]])
    either = [a or b for a, b in zip(gradient.zero, x.zero, strict=True)]
    return [call.label(axes, gradient.zero), call.label(axes, either, output=1)]


@rule(aten.glu_backward.default)
def glu_backward(call: Call) -> Label:
    """The gradients of both halves, one after the other."""
    gradient, x, dim = call["grad_output"], call["self"], call["dim"] % len(call["self"].axes)
    half = gradient.axes[dim]
    for i, (ours, theirs) in enumerate(zip(gradient.axes, x.axes, strict=True)):
        call.equate(concatenate([half, half]) if i == dim else ours, theirs)
    return call.label(x.axes, gradient.zero)


@rule(aten._softmax_backward_data.default, aten._log_softmax_backward_data.default)
def softmax_backward(call: Call) -> Label:
    """Entries along ``dim`` depend on one another, as they do in the forward pass."""
    gradient: Label = call["grad_output"]
    axes = broadcast(call, [gradient, call["output"]])
    zero = list(gradient.zero)
    if axes:
        call.inexact(axes[call["dim"]], f"{call.operator} sums over this dimension")
        zero[call["dim"]] = False
    return call.label(axes, zero)


class _Slope(nn.Module):
    """A function of a gradient [4, 6] and an input [4, 6]; ``bent``: neither of them (b), or not the gradient (a), is
    zero where it is removed."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]], bent: str = "") -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
        self.function, self.bent = function, bent

    def forward(self) -> Tensor | tuple[Tensor, ...]:
        a = self.a.cos() if "a" in self.bent else self.a * 2
        return self.function(a, self.b.cos() if "b" in self.bent else self.b * 2)


class _Force(nn.Module):
    """The gradient of the energy of a small network with regard to its input."""

    def __init__(self, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.x, self.first = nn.Buffer(torch.randn(5, 3)), nn.Linear(3, 8)
        self.second, self.activation = nn.Linear(8, 6), activation

    def forward(self) -> Tensor:
        with torch.enable_grad():
            x = self.x.detach().requires_grad_(True)
            energy = self.activation(self.second(self.activation(self.first(x)))).sum()
            return torch.autograd.grad(energy, x)[0]


for _activation in (
    nn.ELU(),
    nn.Hardshrink(),
    nn.Hardsigmoid(),
    nn.Hardswish(),
    nn.Hardtanh(),
    nn.LeakyReLU(),
    nn.Mish(),
    nn.RReLU().eval(),
    nn.Softplus(),
    nn.Softshrink(),
):
    sample(pointwise)(lambda activation=_activation: _Force(activation))
sample(log_sigmoid_backward)(lambda: _Force(nn.LogSigmoid()))
sample(prelu_backward)(lambda: _Force(nn.PReLU()))


def _of_log_sigmoid(a: Tensor, b: Tensor) -> Tensor:
    made: Tensor = aten.log_sigmoid_backward(a, b, aten.log_sigmoid_forward(b)[1])
    return made


def _of_prelu(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    first, second = aten._prelu_kernel_backward(a, b, torch.full((1, 1), 0.3, dtype=a.dtype).expand_as(a))
    return first, second


def _of_glu(a: Tensor, b: Tensor) -> Tensor:
    made: Tensor = aten.glu_backward(a[:, : a.shape[1] // 2], b, 1)
    return made


def _of_glu_rows(a: Tensor, b: Tensor) -> Tensor:
    made: Tensor = aten.glu_backward(a[: a.shape[0] // 2], b, -2)
    return made


def _of_softmax(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    out = b.sigmoid()
    return (
        aten._softmax_backward_data(a, out, 1, a.dtype),
        aten._log_softmax_backward_data(a.T, out.log().T, 0, a.dtype),
    )


for _bent in ("", "a", "b", "ab"):
    sample(log_sigmoid_backward)(lambda bent=_bent: _Slope(_of_log_sigmoid, bent))
    sample(prelu_backward)(lambda bent=_bent: _Slope(_of_prelu, bent))
    sample(glu_backward)(lambda bent=_bent: _Slope(_of_glu, bent))
    sample(glu_backward)(lambda bent=_bent: _Slope(_of_glu_rows, bent))
    sample(softmax_backward)(lambda bent=_bent: _Slope(_of_softmax, bent))


@mutant(log_sigmoid_backward)
@mutant(prelu_backward)
def _slope_is_zero_too(call: Call) -> list[Label]:
    axes = broadcast(call, [given for given in call.arguments.values() if isinstance(given, Label)])
    zero = [a or b for a, b in zip(call["grad_output"].zero, call["self"].zero, strict=True)]
    return [call.label(axes, zero, output=output) for output in range(len(call.shapes))]


@mutant(log_sigmoid_backward)
@mutant(prelu_backward)
@mutant(glu_backward)
def _input_goes_its_own_way(call: Call) -> list[Label]:
    axes = [call.fresh(size) for size in call.shapes[0]]
    return [call.label(axes, output=output) for output in range(len(call.shapes))]


@mutant(glu_backward)
def _halves_are_interleaved(call: Call) -> Label:
    gradient, x, dim = call["grad_output"], call["self"], call["dim"] % 2
    half = gradient.axes[dim]
    for i, (ours, theirs) in enumerate(zip(gradient.axes, x.axes, strict=True)):
        twice = type(half)(half.ids.repeat(2, axis=0))
        call.equate(twice if i == dim else ours, theirs)
    return call.label(x.axes)


@mutant(glu_backward)
def _gradients_are_zero(call: Call) -> Label:
    right = glu_backward(call)
    return call.label(right.axes, [True] * len(right.axes))


@mutant(softmax_backward)
def _entry_by_entry(call: Call) -> Label:
    return call.label(broadcast(call, [call["grad_output"], call["output"]]))


@mutant(softmax_backward)
def _keeps_all_zeros(call: Call) -> Label:
    right = softmax_backward(call)
    return call.label(right.axes, call["grad_output"].zero)
