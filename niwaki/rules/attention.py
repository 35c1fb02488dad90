"""Follow axes through fused attention: heads are independent, several query heads may share a key head."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.rules.axis import Axis
from niwaki.rules.call import Call
from niwaki.rules.label import Label
from niwaki.rules.registry import mutant, rule, sample

aten = torch.ops.aten


@rule(
    aten._scaled_dot_product_flash_attention_for_cpu.default,
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
    aten._scaled_dot_product_fused_attention_overrideable.default,
)
def attention(call: Call) -> list[Label]:
    """softmax(q kᵀ · scale + mask) v, with q [batch, heads, n, e], k [.., m, e], v [.., m, f]. Heads are independent;
    several query heads may share a key head."""
    q, k, v = call["query"], call["key"], call["value"]
    heads = _shared_heads(call, q.axes[1], k.axes[1])
    call.equate(k.axes[1], v.axes[1])
    call.equate(q.axes[0], k.axes[0])
    call.equate(k.axes[0], v.axes[0])
    call.equate(k.axes[2], v.axes[2])
    call.contract(q, 3, k, 3)
    if call.arguments.get("scale") is None:
        call.inexact(q.axes[3], "attention is scaled by the size of this dimension")
    call.inexact(k.axes[2], "attention averages over this dimension")
    if call.arguments.get("is_causal"):
        call.pin(q.axes[2], "the causal mask counts positions along this dimension")
    if q.axes[3].size == v.axes[3].size:  # the fused kernels want multiples; another kernel would run after the cut
        call.size_is(call.size_of("value", 3), q.axes[3], "the size of a head's values")
    mask = call.arguments.get("attn_mask", call.arguments.get("attn_bias"))
    if mask is not None:
        for ours, theirs in zip((q.axes[0], heads, q.axes[2], k.axes[2])[-len(mask.axes) :], mask.axes, strict=True):
            if theirs.size == ours.size:
                call.equate(ours, theirs)
    call.macs(1, q.axes[0], heads, q.axes[2], k.axes[2], q.axes[3])
    call.macs(1, q.axes[0], heads, q.axes[2], k.axes[2], v.axes[3])
    first = call.label((q.axes[0], heads, q.axes[2], v.axes[3]), (False, v.zero[1], False, v.zero[3]))
    rest = [call.opaque(i) for i in range(1, len(call.shapes))]
    if rest and call.shapes[1] == first.shape[:3]:
        rest[0] = call.label(first.axes[:3], output=1)  # log-sum-exp, per head and query
    return [first, *rest]


def _shared_heads(call: Call, query: Axis, key: Axis) -> Axis:
    if query.size == key.size:
        call.equate(query, key)
        return query
    outer, _ = call.split(query, (key.size, query.size // key.size))
    call.equate(outer, key)
    return query


class _Fused(nn.Module):
    """The operator on parameters: 4 heads, 5 queries, 6 keys, 7 head dimensions that q, k and v share."""

    def __init__(self, mask: bool = False, causal: bool = False, scale: float | None = None) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(2, 4, 5, 7)), nn.Parameter(torch.randn(2, 4, 6, 7))
        self.v = nn.Parameter(torch.randn(2, 4, 6, 7))
        self.mask = nn.Parameter(torch.randn(2, 4, 5, 6)) if mask else None
        self.causal, self.scale = causal, scale

    def forward(self) -> torch.Tensor:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        values = self.v * self.k  # so that their head dimensions go together
        made: torch.Tensor = attend(
            self.q, self.k, values, is_causal=self.causal, attn_mask=self.mask, scale=self.scale
        )[0]
        return made


class _Untied(_Fused):
    """Every operand of its own."""

    def forward(self) -> torch.Tensor:
        made: torch.Tensor = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(self.q, self.k, self.v)[0]
        return made


sample(attention)(lambda: _Fused(scale=0.5))
sample(attention)(lambda: _Fused(mask=True, scale=0.5))
sample(attention)(lambda: _Fused(causal=True, scale=0.5))
sample(attention)(lambda: _Fused())
sample(attention)(_Untied)


def _part_of(
    call: Call, scale: bool = True, keys: bool = True, causal: bool = True, mask: bool = True, zero: bool = False
) -> list[Label]:
    """A mutant: the rule without some of its parts."""
    q, k, v = call["query"], call["key"], call["value"]
    for dim in (0, 1):
        call.equate(q.axes[dim], k.axes[dim])
        call.equate(k.axes[dim], v.axes[dim])
    call.contract(q, 3, k, 3)
    call.equate(k.axes[2], v.axes[2])
    if keys:
        call.pin(k.axes[2], "")
    if causal and call["is_causal"]:
        call.pin(q.axes[2], "")
    if scale and call["scale"] is None:
        call.pin(q.axes[3], "")
    if mask and call["attn_mask"] is not None:
        for ours, theirs in zip((*q.axes[:3], k.axes[2]), call["attn_mask"].axes, strict=True):
            call.equate(ours, theirs)
    call.size_is(call.size_of("value", 3), q.axes[3], "")
    first = call.label((*q.axes[:3], v.axes[3]), (False, v.zero[1], zero, v.zero[3]))
    return [first, *(call.opaque(i) for i in range(1, len(call.shapes)))]


@mutant(attention)
def _forgets_the_scale(call: Call) -> list[Label]:
    return _part_of(call, scale=False)


@mutant(attention)
def _averages_over_free_keys(call: Call) -> list[Label]:
    return _part_of(call, keys=False)


@mutant(attention)
def _forgets_that_it_is_causal(call: Call) -> list[Label]:
    return _part_of(call, causal=False)


@mutant(attention)
def _forgets_the_mask(call: Call) -> list[Label]:
    return _part_of(call, mask=False)


@mutant(attention)
def _removed_queries_answer_zero(call: Call) -> list[Label]:
    return _part_of(call, zero=True)
