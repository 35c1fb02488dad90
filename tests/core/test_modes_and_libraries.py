"""Eval mode is given back module by module, and code of torch is not mistaken for that of libraries named like it."""

from __future__ import annotations

import os

import pytest
from torch import nn

from niwaki.core.libraries import TORCH
from niwaki.core.modes import eval_mode


def test_each_module_gets_its_own_mode_back_after_an_error() -> None:
    frozen = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    other = nn.Sequential(frozen, nn.Dropout())
    with pytest.raises(KeyError), eval_mode(frozen, other):
        assert not any(module.training for module in other.modules())
        raise KeyError
    assert [module.training for module in other.modules()] == [True, True, True, False, True]


def test_torchvision_is_not_torch() -> None:
    assert TORCH.endswith(f"{os.sep}torch{os.sep}")
    assert not f"{TORCH.rstrip(os.sep)}vision{os.sep}ops.py".startswith(TORCH)
