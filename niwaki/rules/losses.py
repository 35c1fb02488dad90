"""Follow axes through losses, which models compute when they are given labels: the dimensions that a loss is computed
over are pinned."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.pointwise import pointwise
from niwaki.rules.registry import mutant, rule, sample

aten = torch.ops.aten
_AVERAGED = "a loss is computed over it"


@rule(
    aten.binary_cross_entropy.default,
    aten.binary_cross_entropy_with_logits.default,
    aten.huber_loss.default,
    aten.mse_loss.default,
    aten.smooth_l1_loss.default,
    aten.soft_margin_loss.default,
)
def difference(call: Call) -> Label:
    """Compares entry by entry; the result is summed or averaged, except with reduction='none'."""
    if call["reduction"] == 0:
        made = pointwise(call)
        return call.label(made.axes, made.zero)
    for given in call.arguments.values():
        for axis in given.axes if isinstance(given, Label) else ():
            call.pin(axis, _AVERAGED)
    return call.label(())


@rule(
    aten._ctc_loss.default,
    aten._ctc_loss.Tensor,
    aten.multi_margin_loss.default,
    aten.nll_loss2d_forward.default,
    aten.nll_loss_forward.default,
)
def likelihood(call: Call) -> list[Label]:
    """The score of one class per row, by index."""
    for given in call.arguments.values():
        for axis in given.axes if isinstance(given, Label) else ():
            call.pin(axis, _AVERAGED)
    return [call.opaque(output, _AVERAGED) for output in range(len(call.shapes))]


class _Loss(nn.Module):
    """A function of parameters [4, 6] and [4, 6], and a product that may shrink in any case."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 6))
        self.c, self.d, self.function = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 2)), function

    def forward(self) -> tuple[Tensor, Tensor]:
        return self.function(self.a, self.b), self.c.relu() @ self.d


def _classified(a: Tensor, b: Tensor) -> Tensor:
    return torch.nn.functional.nll_loss(a.cos(), torch.tensor([0, 3, 2, 3])) * b


sample(difference)(lambda: _Loss(lambda a, b: torch.nn.functional.mse_loss(a, b, reduction="none")))
sample(difference)(lambda: _Loss(lambda a, b: torch.nn.functional.mse_loss(a.cos(), b, reduction="sum")))
sample(difference)(lambda: _Loss(lambda a, b: torch.nn.functional.smooth_l1_loss(a.cos(), b)))
sample(likelihood)(lambda: _Loss(_classified))


@mutant(difference)
def _loss_over_anything(call: Call) -> Label:
    call.equate(call["self"].axes[1], call["target"].axes[1])
    return call.label(call["self"].axes if call.shapes[0] else ())


@mutant(likelihood)
def _classes_are_free(call: Call) -> list[Label]:
    return [call.opaque(output) for output in range(len(call.shapes))]
