"""Linear algebra beyond plain products: bilinear forms, and what takes a matrix as a whole."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.axis import Axis
from niwaki.rules.pointwise import broadcast
from niwaki.rules.registry import Call, Label, homogeneous, mutant, rule, sample

aten = torch.ops.aten
_WHOLE = "a matrix is taken as a whole"


@homogeneous("self", "other")
@rule(aten.vdot.default)
def vdot(call: Call) -> Label:
    """[k] @ [k]."""
    a, b = call["self"], call["other"]
    call.contract(a, 0, b, 0)
    call.macs(1, *a.axes)
    return call.label((), (), a.weight and b.weight)


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


@rule(aten.addmv.default, aten.addmv_.default)
def addmv(call: Call) -> Label:
    """bias + [m, k] @ [k]."""
    bias, a, b = call["self"], call["mat"], call["vec"]
    call.contract(a, 1, b, 0)
    call.macs(1, *a.axes)
    product = call.label(a.axes[:1], a.zero[:1])
    axes = broadcast(call, [product, bias])
    return call.label(axes, [product.zero[0] and bias.shape == product.shape and bias.zero[0]])


@rule(
    aten._linalg_det.default,
    aten._linalg_eigh.default,
    aten._linalg_eigvals.default,
    aten._linalg_slogdet.default,
    aten._linalg_solve_ex.default,
    aten._linalg_svd.default,
    aten.cholesky_inverse.default,
    aten.linalg_cholesky_ex.default,
    aten.linalg_eig.default,
    aten.linalg_inv_ex.default,
    aten.linalg_lu_factor_ex.default,
    aten.linalg_matrix_exp.default,
    aten.linalg_qr.default,
    aten.linalg_solve_triangular.default,
    aten.triangular_solve.default,
)
def whole(call: Call) -> list[Label]:
    """Factors, inverses, solutions: the last two dimensions stay, and matrices of a batch are taken one by one."""
    operands = [given for given in call.arguments.values() if isinstance(given, Label)]
    for x in operands:
        for axis in x.axes[-2:]:
            call.pin(axis, _WHOLE)
        for ours, theirs in zip(operands[0].axes[:-2], x.axes[:-2], strict=True):
            call.equate(ours, theirs)
    batch = operands[0].axes[:-2]
    labels = []
    for output, shape in enumerate(call.shapes):
        rest = [call.fixed(size, _WHOLE) for size in shape[len(batch) :]]
        labels.append(call.label((*batch, *rest), output=output))
    return labels


@rule(aten.trace.default)
def trace(call: Call) -> Label:
    """The sum of a diagonal."""
    for axis in call["self"].axes:
        call.pin(axis, "its diagonal is taken")
    return call.label(())


@rule(aten.linalg_cross.default)
def cross(call: Call) -> Label:
    """Three entries of one dimension at a time; the others are taken one by one."""
    a, b = call["self"], call["other"]
    axes = broadcast(call, [a, b])
    call.pin(axes[call["dim"]], "a cross product mixes its three entries")
    zero = [size == axis.size and flag for size, axis, flag in zip(call.shapes[0], a.axes, a.zero, strict=True)]
    zero[call["dim"]] = False
    return call.label(axes, zero)


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


class _Matrices(nn.Module):
    """A function of [5, 4, 4], far from singular, and [5, 4, 3]; and a product that may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 4, 4)), nn.Parameter(torch.randn(5, 4, 3))
        self.c, self.d = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2))
        self.function = function

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.function(self.a.sigmoid() + 4 * torch.eye(4), self.b), self.c.relu() @ self.d


sample(vdot)(lambda: _Forms(lambda a, b, m, c: torch.vdot(a, b)))
sample(vdot)(lambda: _Forms(lambda a, b, m, c: torch.vdot(a, b) * m, "ab"))
sample(addmv)(lambda: _Forms(lambda a, b, m, c: torch.addmv(c, m, a)))
sample(addmv)(lambda: _Forms(lambda a, b, m, c: torch.addmv(c, m, a), "c"))
sample(addmv)(lambda: _Forms(lambda a, b, m, c: c.clone().addmv_(m, a)))
sample(addmv)(lambda: _Forms(lambda a, b, m, c: torch.addmv(c, m, a), "m"))
for _bent in ("", "x", "w", "xyw", "xy"):
    sample(trilinear)(lambda bent=_bent: _Bilinear(bent))
sample(whole)(lambda: _Matrices(lambda a, b: torch.linalg.inv(a)))
sample(whole)(lambda: _Matrices(lambda a, b: torch.linalg.solve_triangular(a, b, upper=True)))
sample(whole)(lambda: _Matrices(lambda a, b: torch.linalg.qr(b)[1].abs()))
sample(trace)(lambda: _Matrices(lambda a, b: torch.trace(b[0].cos())))
sample(cross)(lambda: _Matrices(lambda a, b: torch.linalg.cross(b, b[:1].cos())))
sample(cross)(lambda: _Matrices(lambda a, b: torch.linalg.cross(b.cos(), a[:, :, :3])))


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


@mutant(whole)
def _rows_are_free(call: Call) -> list[Label]:
    x = next(given for given in call.arguments.values() if isinstance(given, Label))
    batch = len(x.axes) - 2
    return [
        call.label((*x.axes[:batch], *(call.fresh(n) for n in shape[batch:])), output=i)
        for i, shape in enumerate(call.shapes)
    ]


@mutant(whole)
def _solutions_are_zero(call: Call) -> list[Label]:
    return [call.label(x.axes, [True] * len(x.axes), output=i) for i, x in enumerate(whole(call))]


@mutant(trace)
def _diagonal_is_free(call: Call) -> Label:
    return call.label(())


@mutant(cross)
def _all_three_may_go(call: Call) -> Label:
    return call.label(broadcast(call, [call["self"], call["other"]]))


@mutant(cross)
def _cross_is_zero(call: Call) -> Label:
    return call.label(cross(call).axes, (True, True, True))
