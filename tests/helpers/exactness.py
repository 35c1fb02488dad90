"""How far the cut network is from the zeroed one: outputs in float32 and float64, and gradients in train mode."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

import niwaki
from niwaki.surgery.zero import zeroed
from niwaki.testing.rivals import Rivals
from niwaki.trace.structures import tensors_in
from niwaki.trace.tracer import example_calls
from niwaki.verify import convert, difference


def outputs(model: nn.Module, inputs: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """Floating-point outputs of the first example call."""
    args, kwargs = convert(example_calls(inputs)[0], dtype)
    return [tensor for tensor in tensors_in(model(*args, **kwargs)) if tensor.is_floating_point()]


def deviations(model: nn.Module, plan: niwaki.Plan, inputs: Any, train: bool = True) -> dict[str, float]:
    """Relative deviations of outputs in eval mode, ``float32`` and ``eval`` (float64), and, in float64, of gradients in
    ``train`` mode. No deviation is excused as round-off, and a network that does not run in float64 is a failure."""
    call, rivals = example_calls(inputs)[0], Rivals(model, plan)
    dense = copy.deepcopy(model).float().eval()
    with torch.no_grad():
        ours = outputs(niwaki.cut(dense, plan), inputs, torch.float32)
        found = {"float32": difference(ours, outputs(zeroed(dense, plan), inputs, torch.float32))}
    double = rivals.outputs(call)
    assert double.precision == torch.float64, double
    found["eval"] = double.deviation
    if train:
        gradients = rivals.gradients(call)
        assert gradients is not None, rivals.refusal
        found["train"] = gradients.deviation
    return found
