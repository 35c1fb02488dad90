"""Follow axes through embeddings: rows are read by index, one by one or summed in bags."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call
from niwaki.rules.indexing_read import LOOKED_UP
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, rule, sample
from niwaki.rules.views import zeros_of

aten = torch.ops.aten


@rule(aten.embedding.default)
def embedding(call: Call) -> Label:
    """Rows of ``weight`` by number."""
    weight, indices = call["weight"], call["indices"]
    call.indexed_by(weight.axes[0], indices, LOOKED_UP)
    call.produces(weight, 1)
    return call.label((*indices.axes, weight.axes[1]), (*(False for _ in indices.axes), weight.zero[1]))


@rule(aten._embedding_bag.default, aten._embedding_bag_forward_only.default)
def embedding_bag(call: Call) -> list[Label]:
    """Rows of ``weight`` by index; the rows of a bag are summed, averaged or compared."""
    weight, shared = call["weight"], call["per_sample_weights"]
    call.pin(weight.axes[0], LOOKED_UP)
    for given in (call["indices"], call["offsets"], *([shared] if shared is not None else [])):
        call.pin(given.axes[0], "it assigns rows to bags")
    call.produces(weight, 1)
    bags = call.fixed(call.shapes[0][0], "its size is the number of bags")
    first = call.label((bags, weight.axes[1]), (False, weight.zero[1]))
    return [first, *(call.opaque(output) for output in range(1, len(call.shapes)))]


class _Bags(nn.Module):
    """Two bags of rows [4, 6], and a product that may shrink in any case."""

    def __init__(self, bent: bool = False, weighed: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.w = (
            nn.Parameter(torch.randn(4, 6)),
            nn.Parameter(torch.randn(6, 5)),
            nn.Parameter(torch.rand(3)),
        )
        self.bent, self.weighed = bent, weighed

    def forward(self) -> tuple[Tensor, Tensor]:
        weights = self.w.cos() if self.weighed else None
        rows, starts = torch.tensor([2, 0, 3]), torch.tensor([0, 2])
        made = nn.functional.embedding_bag(
            rows, self.a.cos() if self.bent else self.a, starts, mode="sum", per_sample_weights=weights
        )
        return made, self.b.detach().relu().T @ self.b


class _Table(nn.Module):
    """A function of a parameter [4, 6] and three row numbers."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.function = nn.Parameter(torch.randn(4, 6)), function

    def forward(self) -> Tensor:
        return self.function(self.a, torch.tensor([2, 0, 2]))


sample(embedding)(lambda: _Table(lambda a, i: torch.nn.functional.embedding(i, a) * 2))
sample(embedding)(lambda: _Table(lambda a, i: torch.nn.functional.embedding(i, a.sigmoid())))
sample(embedding_bag)(lambda: _Bags())
sample(embedding_bag)(lambda: _Bags(bent=True))
sample(embedding_bag)(lambda: _Bags(weighed=True))


mutant(embedding)(zeros_of(embedding))


@mutant(embedding)
def _rows_are_free(call: Call) -> Label:
    return call.label((*(call.fresh(size) for size in call.shapes[0][:-1]), call["weight"].axes[1]))


@mutant(embedding_bag)
def _any_row_may_go(call: Call) -> list[Label]:
    bags = call.fixed(call.shapes[0][0])
    return [call.label((bags, call["weight"].axes[1])), *(call.opaque(i) for i in range(1, len(call.shapes)))]


@mutant(embedding_bag)
def _bags_are_zero(call: Call) -> list[Label]:
    right = embedding_bag(call)
    return [call.label(right[0].axes, (True, True)), *right[1:]]
