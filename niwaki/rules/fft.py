"""Follow axes through Fourier transforms, whose dimensions are pinned, and through the parts of complex numbers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.pointwise import pointwise
from niwaki.rules.registry import homogeneous, mutant, rule, sample

aten = torch.ops.aten
_TRANSFORMED = "it is transformed: every result depends on all of its entries and on their number"

rule(aten.complex.default, aten.polar.default)(pointwise)  # element-wise, but not tagged so


@homogeneous("self")
@rule(aten._fft_r2c.default, aten._fft_c2c.default, aten._fft_c2r.default)
def fourier(call: Call) -> Label:
    """The transformed dimensions are pinned, the others are kept."""
    x: Label = call["self"]
    axes, zero = list(x.axes), list(x.zero)
    for dim in call["dim"]:
        call.pin(x.axes[dim], _TRANSFORMED)
        axes[dim], zero[dim] = call.fixed(call.shapes[0][dim], _TRANSFORMED), False
    return call.label(axes, zero)


@homogeneous("self")
@rule(aten.view_as_real.default)
def as_real(call: Call) -> Label:
    """A last dimension of two is added: real and imaginary parts."""
    x: Label = call["self"]
    return call.label((*x.axes, call.fixed(2, "it holds a real and an imaginary part")), (*x.zero, False))


@homogeneous("self")
@rule(aten.view_as_complex.default)
def as_complex(call: Call) -> Label:
    """The last dimension, of two, is dropped."""
    x: Label = call["self"]
    call.pin(x.axes[-1], "it holds a real and an imaginary part")
    return call.label(x.axes[:-1], x.zero[:-1])


class _Waves(nn.Module):
    """A function of a parameter [3, 4, 6] whose rows and columns are scaled, or bent away from zero. Complex numbers
    would not be compared: the function gives real ones."""

    def __init__(self, function: Callable[[Tensor], Tensor], bent: bool = False, last: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(3, 4, last)), nn.Parameter(torch.randn(3, 1, 1))
        self.function, self.bent = function, bent

    def forward(self) -> Tensor:
        x = self.a * self.b
        return self.function(x.sigmoid() if self.bent else x)


def _filtered(x: Tensor) -> Tensor:
    made: Tensor = torch.fft.irfft2(torch.fft.rfft2(x, dim=(1, 2)), s=(4, 6), dim=(1, 2))
    return made


for _bent in (False, True):
    sample(fourier)(lambda bent=_bent: _Waves(lambda x: torch.fft.fft(x, dim=1).abs(), bent))
    sample(fourier)(lambda bent=_bent: _Waves(lambda x: torch.fft.rfft(x, dim=2).abs(), bent))
    sample(fourier)(lambda bent=_bent: _Waves(_filtered, bent))
    sample(as_real)(lambda bent=_bent: _Waves(lambda x: torch.view_as_real(torch.complex(x, x * 2)), bent))
    sample(as_complex)(lambda bent=_bent: _Waves(lambda x: torch.view_as_complex(x).abs(), bent, last=2))


@mutant(fourier)
def _transformed_dimensions_are_free(call: Call) -> Label:
    axes = call["self"].axes
    return call.label([a if a.size == n else call.fixed(n) for a, n in zip(axes, call.shapes[0], strict=True)])


@mutant(fourier)
@mutant(as_real)
@mutant(as_complex)
def _always_zero(call: Call) -> Label:
    right = {aten.view_as_real: as_real, aten.view_as_complex: as_complex}.get(call.operator.overloadpacket, fourier)
    axes = right(call).axes
    return call.label(axes, [True] * len(axes))


@mutant(as_real)
def _parts_come_first(call: Call) -> Label:
    x: Label = call["self"]
    return call.label((*x.axes[:2], x.axes[2].take(slice(None, None, -1)), call.fixed(2)))


@mutant(as_complex)
def _parts_may_go(call: Call) -> Label:
    return call.label(call["self"].axes[:-1])
