"""The law on a whole model: eval outputs and train-mode gradients in float64, eval outputs in float32."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn

import niwaki
from niwaki.core.precision import doubled
from niwaki.surgery.zero import zeroed
from niwaki.testing.models import random_plan as random_plan
from niwaki.trace.structures import tensors_in
from niwaki.trace.tracer import example_calls
from niwaki.verify import convert, difference

DROPPING = ("p", "drop_prob", "dropout", "attention_dropout", "drop_path_rate")


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random norm statistics, and random values for every parameter that starts at zero or one: or the law is blind."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if bool((parameter == parameter.reshape(-1)[0]).all()) or parameter.ndim < 2:
                parameter.copy_(torch.rand(parameter.shape, generator=generator) + 0.5)
        for name, buffer in model.named_buffers():
            if "running_" in name:
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    return model


def without_randomness(model: nn.Module) -> nn.Module:
    """Dropout and drop-path off, so that two networks can be compared in train mode."""
    for module in model.modules():
        for name in DROPPING:
            if isinstance(module.__dict__.get(name), float):
                setattr(module, name, 0.0)
    return model


def outputs(model: nn.Module, inputs: Any, dtype: torch.dtype) -> list[torch.Tensor]:
    """Floating-point outputs of the first example call."""
    args, kwargs = convert(example_calls(inputs)[0], dtype)
    return [tensor for tensor in tensors_in(model(*args, **kwargs)) if tensor.is_floating_point()]


def deviations(model: nn.Module, plan: niwaki.Plan, inputs: Any, train: bool = True) -> dict[str, float]:
    """Relative deviations of the cut from the zeroed network."""
    found = {}
    for name, dtype, precision in (("float32", torch.float32, nullcontext()), ("eval", torch.float64, doubled())):
        dense = copy.deepcopy(model).to(dtype).eval()
        with torch.no_grad(), precision:
            ours = outputs(niwaki.cut(dense, plan), inputs, dtype)
            found[name] = difference(ours, outputs(zeroed(dense, plan), inputs, dtype))
    if train:
        with doubled():
            found["train"] = _gradients(model, plan, inputs)
    return found


def _gradients(model: nn.Module, plan: niwaki.Plan, inputs: Any) -> float:
    dense = without_randomness(copy.deepcopy(model).double().train())
    small, zero = niwaki.cut(dense, plan), zeroed(dense, plan)
    for network in (small, zero):
        generator = torch.Generator().manual_seed(0)
        loss = sum(
            (out * torch.randn(out.shape, generator=generator, dtype=out.dtype)).sum()
            for out in outputs(network, inputs, torch.float64)
        )
        loss.backward()
    expected, ours = [], []
    large = dict(zero.named_parameters())
    factors = {repair.tensor: repair.factor for repair in plan.repairs}  # by the chain rule
    for name, parameter in small.named_parameters():
        gradient = large[name].grad
        if gradient is None or parameter.grad is None:
            assert (gradient is None) == (parameter.grad is None), name
            continue
        for dim, kept in plan.tensors.get(name, {}).items():
            gradient = gradient.index_select(dim, torch.tensor(kept))
        expected.append(gradient)
        ours.append(parameter.grad * factors.get(name, 1.0))
    scale = max(float(gradient.abs().max()) for gradient in expected)
    return max(float((a - b).abs().max()) for a, b in zip(ours, expected, strict=True)) / scale
