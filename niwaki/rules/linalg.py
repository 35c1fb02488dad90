"""Follow axes through linear algebra that takes a matrix as a whole, and through distances between vectors."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call
from niwaki.rules.identity import read_out
from niwaki.rules.label import Label
from niwaki.rules.pointwise import broadcast
from niwaki.rules.registry import mutant, rule, sample

aten = torch.ops.aten
_WHOLE = "a matrix is taken as a whole"


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
def whole_matrix(call: Call) -> list[Label]:
    """Factors, inverses, solutions: the last two dimensions are pinned; each matrix of a batch is taken by itself."""
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


rule(aten._linalg_check_errors.default)(read_out)  # error codes, which are all zero


@rule(aten.trace.default)
def trace(call: Call) -> Label:
    """The sum of a diagonal."""
    for axis in call["self"].axes:
        call.pin(axis, "its diagonal is taken")
    return call.label(())


@rule(aten.linalg_cross.default)
def cross(call: Call) -> Label:
    """The three entries of one dimension are mixed; the other dimensions are kept."""
    a, b = call["self"], call["other"]
    axes = broadcast(call, [a, b])
    call.pin(axes[call["dim"]], "a cross product mixes its three entries")
    zero = [size == axis.size and flag for size, axis, flag in zip(call.shapes[0], a.axes, a.zero, strict=True)]
    zero[call["dim"]] = False
    return call.label(axes, zero)


@rule(aten._cdist_forward.default, aten._euclidean_dist.default)
def distances(call: Call) -> Label:
    """Between the rows of [.., p, k] and those of [.., r, k]: [.., p, r]."""
    a, b = call["x1"], call["x2"]
    call.equate(a.axes[-1], b.axes[-1])
    if not (a.zero[-1] and b.zero[-1]):
        for axis in (a.axes[-1], b.axes[-1]):
            call.pin(axis, "a distance runs over it, and its removed entries are not zero")
    for x, other in ((a, b), (b, a)):
        if x.weight:
            call.consumes(x, len(x.axes) - 1, other.zero[-1])
            call.zeroed_by_method(
                x, len(x.axes) - 1
            )  # also where the other is zero: the two are subtracted, not multiplied
    lead = []
    for size, ours, theirs in zip(call.shapes[0][:-2], a.axes[:-2], b.axes[:-2], strict=True):
        if ours.size == theirs.size:
            call.equate(ours, theirs)
        lead.append(ours if ours.size == size else theirs)
    return call.label((*lead, a.axes[-2], b.axes[-2]))


@rule(aten.dist.default)
def distance(call: Call) -> Label:
    """Distance between two tensors, which are broadcast: one number."""
    for operand in (call["self"], call["other"]):
        for axis in operand.axes:
            call.pin(axis, "a distance runs over it")
    return call.label(())


class _Matrices(nn.Module):
    """A function of [5, 4, 4], far from singular, and [5, 4, 3]; and a product that may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(5, 4, 4)), nn.Parameter(torch.randn(5, 4, 3))
        self.c, self.d = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2))
        self.function = function

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.function(self.a.sigmoid() + 4 * torch.eye(4), self.b), self.c.relu() @ self.d


class _Between(nn.Module):
    """A function of parameters [2, 4, 6] and [2, 5, 6], of which one, both or none are bent away from zero; and a
    product that may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *bent: str) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(2, 4, 6)), nn.Parameter(torch.randn(2, 5, 6))
        self.c, self.d = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2))
        self.function, self.bent = function, bent

    def forward(self) -> tuple[Tensor, Tensor]:
        a = self.a.sigmoid() if "a" in self.bent else self.a
        return self.function(a, self.b.cos() if "b" in self.bent else self.b), self.c.relu() @ self.d


sample(whole_matrix)(lambda: _Matrices(lambda a, b: torch.linalg.inv(a)))
sample(whole_matrix)(lambda: _Matrices(lambda a, b: torch.linalg.solve_triangular(a, b, upper=True)))
sample(whole_matrix)(lambda: _Matrices(lambda a, b: torch.linalg.qr(b)[1].abs()))
sample(trace)(lambda: _Matrices(lambda a, b: torch.trace(b[0].cos())))
sample(cross)(lambda: _Matrices(lambda a, b: torch.linalg.cross(b, b[:1].cos())))
sample(cross)(lambda: _Matrices(lambda a, b: torch.linalg.cross(b.cos(), a[:, :, :3])))
sample(distances)(lambda: _Between(torch.cdist))
sample(distances)(lambda: _Between(torch.cdist, "a"))
sample(distances)(lambda: _Between(torch.cdist, "b"))
sample(distances)(lambda: _Between(torch.cdist, "a", "b"))
sample(distances)(lambda: _Between(lambda a, b: torch.cdist(a, b, p=1.0)))
sample(distance)(lambda: _Between(lambda a, b: torch.dist(a, b[:, :4]) * b, "a"))
sample(distance)(lambda: _Between(lambda a, b: torch.dist(b[:, :4].cos(), a) * b))


@mutant(whole_matrix)
def _rows_are_free(call: Call) -> list[Label]:
    x = next(given for given in call.arguments.values() if isinstance(given, Label))
    batch = len(x.axes) - 2
    return [
        call.label((*x.axes[:batch], *(call.fresh(n) for n in shape[batch:])), output=i)
        for i, shape in enumerate(call.shapes)
    ]


@mutant(whole_matrix)
def _solutions_are_zero(call: Call) -> list[Label]:
    return [call.label(x.axes, [True] * len(x.axes), output=i) for i, x in enumerate(whole_matrix(call))]


@mutant(trace)
def _diagonal_is_free(call: Call) -> Label:
    return call.label(())


@mutant(cross)
def _all_three_may_go(call: Call) -> Label:
    return call.label(broadcast(call, [call["self"], call["other"]]))


@mutant(cross)
def _cross_is_zero(call: Call) -> Label:
    return call.label(cross(call).axes, (True, True, True))


@mutant(distances)
def _distance_over_anything(call: Call) -> Label:
    a, b = call["x1"], call["x2"]
    call.equate(a.axes[-1], b.axes[-1])
    call.equate(a.axes[0], b.axes[0])
    return call.label((a.axes[0], a.axes[1], b.axes[1]))


@mutant(distances)
def _distances_are_zero(call: Call) -> Label:
    axes = distances(call).axes
    return call.label(axes, [True] * len(axes))


@mutant(distance)
def _free(call: Call) -> Label:
    return call.label(())
