"""What `search_space` and `check` are given as a model."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import niwaki
from niwaki.errors import TraceError


def test_a_lazy_module_has_to_run_first() -> None:
    model, x = nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(2)), torch.randn(3, 5)
    with pytest.raises(TraceError) as caught:
        niwaki.search_space(model, x)
    assert str(caught.value) == (
        "The tensor '0.weight' of the model has no shape yet: its module is lazy and takes its sizes from the first "
        "input. Run the model once, and make the optimizer after that."
    )
    model(x)
    assert niwaki.search_space(model, x).num_units == 8


def test_a_lazy_buffer_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.LazyBatchNorm2d(affine=False))
    with pytest.raises(TraceError, match="The tensor '1.running_mean' of the model has no shape yet"):
        niwaki.search_space(model, torch.randn(1, 3, 4, 4))


def test_a_model_that_is_none() -> None:
    function = torch.relu
    with pytest.raises(TraceError, match="The model is a builtin_function_or_method. Pass a torch.nn.Module or a"):
        niwaki.search_space(function, torch.randn(3))  # type: ignore[arg-type]
