"""Fused attention."""

from __future__ import annotations

import torch
from torch import nn

from niwaki.rules.axis import Axis
from niwaki.rules.registry import Call, Label, mutant, rule, sample

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
    for i, j, m in zip(q.axes[:1], k.axes[:1], v.axes[:1], strict=True):
        call.equate(i, j)
        call.equate(j, m)
    call.contract(q, 3, k, 3)
    if call.arguments.get("scale") is None:
        call.pin(q.axes[3], "attention is scaled by the size of this dimension")
    for axis in (k.axes[2], v.axes[2]):
        call.pin(axis, "attention averages over this dimension")
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


class _Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(2, 4, 5, 6)), nn.Parameter(torch.randn(2, 4, 5, 6))
        self.v, self.mask = nn.Parameter(torch.randn(2, 4, 5, 7)), nn.Parameter(torch.randn(2, 4, 5, 5))

    def forward(self) -> torch.Tensor:
        attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return attend(self.q, self.k, self.v[..., :6], attn_mask=self.mask, scale=0.5)[0]


class _DefaultScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Parameter(torch.randn(2, 3, 5, 6)), nn.Parameter(torch.randn(2, 3, 5, 6))
        self.v = nn.Parameter(torch.randn(2, 3, 5, 6))

    def forward(self) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(self.q, self.k, self.v)


sample(attention)(_Heads)
sample(attention)(_DefaultScale)


@mutant(attention)
def _forgets_the_scale(call: Call) -> list[Label]:
    q, k, v = call["query"], call["key"], call["value"]
    for dim in (0, 1, 3):
        call.equate(q.axes[dim], k.axes[dim])
        call.equate(k.axes[dim], v.axes[dim])
    first = call.label((*q.axes[:3], v.axes[3]), (False, False, True, True))
    return [first, *(call.opaque(i) for i in range(1, len(call.shapes)))]


@mutant(attention)
def _heads_of_queries_only(call: Call) -> list[Label]:
    q, v = call["query"], call["value"]
    return [call.label((*q.axes[:3], v.axes[3])), *(call.opaque(i) for i in range(1, len(call.shapes)))]
