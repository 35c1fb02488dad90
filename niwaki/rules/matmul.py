"""Follow axes through products of matrices and vectors: contracted dimensions are equated, the others are kept."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.axis import Axis
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.pointwise import broadcast
from niwaki.rules.registry import homogeneous, mutant, nonnegative, rule, sample
from niwaki.rules.zeros import product

aten = torch.ops.aten


@nonnegative("self", "mat2")
@homogeneous("self", "mat2")
@product("self", "mat2")
@rule(aten.mm.default)
def mm(call: Call) -> Label:
    """[m, k] @ [k, n]."""
    return _product(call, call["self"], call["mat2"])


def _product(call: Call, a: Label, b: Label) -> Label:
    call.contract(a, 1, b, 0)
    call.macs(1, a.axes[0], a.axes[1], b.axes[1])
    return call.label((a.axes[0], b.axes[1]), (a.zero[0], b.zero[1]), a.weight and b.weight)


@homogeneous("mat1", "mat2", plus="self")
@product("mat1", "mat2", plus="self")
@rule(aten.addmm.default, aten.addmm_.default, aten._sparse_addmm.default)
def addmm(call: Call) -> Label:
    """bias + [m, k] @ [k, n]."""
    return _plus(call, call["self"], _product(call, call["mat1"], call["mat2"]))


def _plus(call: Call, bias: Label, product: Label) -> Label:
    axes = broadcast(call, [product, bias])
    lead = len(axes) - len(bias.axes)
    zero = [
        product.zero[dim] and dim >= lead and bias.axes[dim - lead].size == axis.size and bias.zero[dim - lead]
        for dim, axis in enumerate(axes)
    ]
    return call.label(axes, zero, product.weight and bias.weight)


@nonnegative("self", "mat2")
@homogeneous("self", "mat2")
@product("self", "mat2")
@rule(aten.bmm.default)
def bmm(call: Call) -> Label:
    """[b, m, k] @ [b, k, n]."""
    return _batched(call, call["self"], call["mat2"])


def _batched(call: Call, a: Label, b: Label) -> Label:
    call.equate(a.axes[0], b.axes[0])
    call.contract(a, 2, b, 1)
    batch = a.axes[0] if a.axes[0].free else b.axes[0]
    call.macs(1, batch, a.axes[1], a.axes[2], b.axes[2])
    zero = (a.zero[0] or b.zero[0], a.zero[1], b.zero[2])
    return call.label((batch, a.axes[1], b.axes[2]), zero, a.weight and b.weight)


@homogeneous("batch1", "batch2", plus="self")
@product("batch1", "batch2", plus="self")
@rule(aten.baddbmm.default, aten.baddbmm_.default)
def baddbmm(call: Call) -> Label:
    """bias + [b, m, k] @ [b, k, n]."""
    return _plus(call, call["self"], _batched(call, call["batch1"], call["batch2"]))


@homogeneous("self", "vec")
@product("self", "vec")
@rule(aten.mv.default)
def mv(call: Call) -> Label:
    """[m, k] @ [k]."""
    a, b = call["self"], call["vec"]
    call.contract(a, 1, b, 0)
    call.macs(1, *a.axes)
    return call.label(a.axes[:1], a.zero[:1], a.weight and b.weight)


@homogeneous("self", "tensor")
@rule(aten.dot.default)
def dot(call: Call) -> Label:
    """[k] @ [k]."""
    a, b = call["self"], call["tensor"]
    call.contract(a, 0, b, 0)
    call.macs(1, *a.axes)
    return call.label((), (), a.weight and b.weight)


@homogeneous("self", "other")
@rule(aten.vdot.default)
def vdot(call: Call) -> Label:
    """[k] @ [k]."""
    a, b = call["self"], call["other"]
    call.contract(a, 0, b, 0)
    call.macs(1, *a.axes)
    return call.label((), (), a.weight and b.weight)


@product("mat", "vec", plus="self")
@rule(aten.addmv.default, aten.addmv_.default)
def addmv(call: Call) -> Label:
    """bias + [m, k] @ [k]."""
    bias, a, b = call["self"], call["mat"], call["vec"]
    call.contract(a, 1, b, 0)
    call.macs(1, *a.axes)
    product = call.label(a.axes[:1], a.zero[:1])
    axes = broadcast(call, [product, bias])
    return call.label(axes, [product.zero[0] and bias.shape == product.shape and bias.zero[0]])


@rule(aten._trilinear.default)
def trilinear(call: Call) -> Label:
    """The sum over some dimensions of the product of three tensors that are broadcast against one another: dimensions
    listed in ``expand1`` are missing in the first, and so on."""
    operands = [call["i1"], call["i2"], call["i3"]]
    rank = len(operands[0].axes) + len(call["expand1"])
    present: list[list[Axis]] = [[] for _ in range(rank)]
    zeros = [False] * rank
    for own, missing in zip(operands, (call["expand1"], call["expand2"], call["expand3"]), strict=True):
        there = [dim for dim in range(rank) if dim not in missing]
        for dim, axis, flag in zip(there, own.axes, own.zero, strict=True):
            present[dim].append(axis)
            zeros[dim] |= flag
    made, zero = [], []
    for dim, (first, *others) in enumerate(present):
        for axis in others:
            call.equate(first, axis)
        if dim not in call["sumdim"]:
            made.append(next((axis for axis in (first, *others) if axis.free), first))
            zero.append(zeros[dim])
        elif not zeros[dim]:
            call.pin(first, "it is summed over, and its removed entries are not zero")
    call.macs(1, *(axes[0] for axes in present))
    return call.label(made, zero)


class _Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.x, self.first, self.second = nn.Parameter(torch.randn(3, 4)), nn.Linear(4, 6), nn.Linear(6, 5, bias=False)

    def forward(self) -> torch.Tensor:
        result: torch.Tensor = self.second(torch.sigmoid(self.first(self.x)))
        return result


class _BatchedProduct(nn.Module):
    """As in attention, with a bent bias: 3 heads, 4 queries, 5 keys."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(3, 4, 6)), nn.Parameter(torch.randn(3, 5, 6))
        self.v, self.bias = nn.Parameter(torch.randn(3, 5, 7)), nn.Parameter(torch.randn(3, 4, 5))

    def forward(self) -> torch.Tensor:
        return torch.bmm(torch.baddbmm(self.bias.sigmoid(), self.q, self.k.transpose(1, 2)), self.v)


class _Scores(_BatchedProduct):
    """The same without the second product, whose operands would hide an error in the first."""

    def forward(self) -> torch.Tensor:
        return torch.baddbmm(self.bias.sigmoid(), self.q, self.k.transpose(1, 2))


class _Vectors(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Parameter(torch.randn(*shape)) for shape in ((4, 5), (5,), (4,)))

    def forward(self) -> torch.Tensor:
        return torch.mv(self.a, self.b) * torch.dot(self.c, self.c)


class _Dot(nn.Module):
    """Two vectors that only the product ties; one is bent so that its removed entries are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6))

    def forward(self) -> torch.Tensor:
        return torch.dot(self.a.sigmoid(), self.b)


class _NonzeroProduct(nn.Module):
    """No operand of the sum is zero where units are removed, so nothing may be removed."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 5))

    def forward(self) -> torch.Tensor:
        return self.a.sigmoid() @ self.b.sigmoid()


class _BendsTheBias(nn.Module):
    """A bias that is not zero where it is removed."""

    def __init__(self) -> None:
        super().__init__()
        self.x, self.w, self.b = (nn.Parameter(torch.randn(*shape)) for shape in ((3, 4), (4, 6), (6,)))

    def forward(self) -> torch.Tensor:
        return torch.addmm(self.b.sigmoid(), self.x, self.w)


class _Onto(_BatchedProduct):
    """Products that are added to another tensor."""

    def forward(self) -> torch.Tensor:
        scores = (self.bias * 2).baddbmm_(self.q, self.k.transpose(1, 2))
        return scores[0].clone().addmm_(self.q[0], self.k[0].T)


class _Forms(nn.Module):
    """A function of parameters [5], [5], [3, 5] and [3]; those named in ``bent`` are bent away from zero."""

    def __init__(self, function: Callable[..., Tensor], bent: str = "") -> None:
        super().__init__()
        self.a, self.b, self.m = (nn.Parameter(torch.randn(*shape)) for shape in ((5,), (5,), (3, 5)))
        self.c, self.function, self.bent = nn.Parameter(torch.randn(3)), function, bent

    def forward(self) -> Tensor:
        a, b, m, c = (
            getattr(self, name).sigmoid() if name in self.bent else getattr(self, name) for name in ("a", "b", "m", "c")
        )
        return self.function(a, b, m, c)


class _Bilinear(nn.Module):
    """[3, 4] and [3, 5] with a weight [6, 4, 5]."""

    def __init__(self, bent: str = "") -> None:
        super().__init__()
        self.x, self.y = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(3, 5))
        self.w, self.bent = nn.Parameter(torch.randn(6, 4, 5)), bent

    def forward(self) -> Tensor:
        x, y, w = (getattr(self, n).sigmoid() if n in self.bent else getattr(self, n) for n in ("x", "y", "w"))
        return torch.nn.functional.bilinear(x, y, w)


sample(mm)(_Linear)
sample(mm)(_NonzeroProduct)
sample(addmm)(_Linear)
sample(addmm)(_BendsTheBias)
sample(addmm)(_Onto)
sample(bmm)(_BatchedProduct)
sample(baddbmm)(_Scores)
sample(baddbmm)(_Onto)
sample(mv)(_Vectors)
sample(dot)(_Dot)
sample(vdot)(lambda: _Forms(lambda a, b, m, c: torch.vdot(a, b)))
sample(vdot)(lambda: _Forms(lambda a, b, m, c: torch.vdot(a, b) * m, "ab"))
sample(addmv)(lambda: _Forms(lambda a, b, m, c: torch.addmv(c, m, a)))
sample(addmv)(lambda: _Forms(lambda a, b, m, c: torch.addmv(c, m, a), "c"))
sample(addmv)(lambda: _Forms(lambda a, b, m, c: c.clone().addmv_(m, a)))
sample(addmv)(lambda: _Forms(lambda a, b, m, c: torch.addmv(c, m, a), "m"))
for _bent in ("", "x", "w", "xyw", "xy"):
    sample(trilinear)(lambda bent=_bent: _Bilinear(bent))


@mutant(mm)
def _mm_transposed(call: Call) -> Label:
    a, b = call["self"], call["mat2"]
    call.contract(a, 1, b, 0)
    return call.label([axis.take(slice(None, None, -1)) for axis in (a.axes[0], b.axes[1])])


@mutant(mm)
def _mm_sums_anything(call: Call) -> Label:
    a, b = call["self"], call["mat2"]
    call.equate(a.axes[1], b.axes[0])
    return call.label((a.axes[0], b.axes[1]), (a.zero[0], b.zero[1]))


@mutant(mm)
def _mm_is_zero_throughout(call: Call) -> Label:
    return call.label(mm(call).axes, (True, True))


@mutant(addmm)
def _addmm_without_bias(call: Call) -> Label:
    return _product(call, call["mat1"], call["mat2"])


@mutant(addmm)
def _addmm_believes_the_product(call: Call) -> Label:
    right = addmm(call)
    return call.label(right.axes, (False, call["mat2"].zero[1]))


@mutant(bmm)
def _bmm_without_contraction(call: Call) -> Label:
    a, b = call["self"], call["mat2"]
    call.equate(a.axes[0], b.axes[0])
    return call.label((a.axes[0], a.axes[1], b.axes[2]))


@mutant(bmm)
def _bmm_with_free_batches(call: Call) -> Label:
    a, b = call["self"], call["mat2"]
    call.contract(a, 2, b, 1)
    return call.label((a.axes[0], a.axes[1], b.axes[2]))


@mutant(baddbmm)
def _baddbmm_keeps_zeros(call: Call) -> Label:
    return call.label(baddbmm(call).axes, (True, True, True))


@mutant(baddbmm)
def _baddbmm_without_bias(call: Call) -> Label:
    return _batched(call, call["batch1"], call["batch2"])


@mutant(mv)
def _mv_without_contraction(call: Call) -> Label:
    return call.label(call["self"].axes[:1])


@mutant(mv)
def _mv_backwards(call: Call) -> Label:
    return call.label([axis.take(slice(None, None, -1)) for axis in mv(call).axes])


@mutant(dot)
def _dot_without_contraction(call: Call) -> Label:
    return call.label(())


@mutant(dot)
def _dot_backwards(call: Call) -> Label:
    call.equate(call["self"].axes[0], call["tensor"].axes[0].take(slice(None, None, -1)))
    return call.label(())


@mutant(vdot)
def _vdot_of_anything(call: Call) -> Label:
    call.equate(call["self"].axes[0], call["other"].axes[0])
    return call.label(())


@mutant(trilinear)
def _nothing_is_summed(call: Call) -> Label:
    x, w = call["i1"], call["i2"]
    return call.label((x.axes[0], w.axes[0]) if w.shape[0] == call.shapes[0][1] else (x.axes[0], w.axes[-1]))


@mutant(trilinear)
def _all_is_zero(call: Call) -> Label:
    axes = trilinear(call).axes
    return call.label(axes, [True] * len(axes))


@mutant(addmv)
def _addmv_believes_the_product(call: Call) -> Label:
    return call.label(addmv(call).axes, call["mat"].zero[:1])


@mutant(addmv)
def _addmv_without_bias(call: Call) -> Label:
    call.contract(call["mat"], 1, call["vec"], 0)
    return call.label(call["mat"].axes[:1])
