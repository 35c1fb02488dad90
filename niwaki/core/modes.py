"""Eval mode inside of a block of code."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Put ``networks`` into eval mode inside the block, and each of their modules back into its own mode afterwards.

    Each module has a mode of its own, which ``network.train(mode)`` would overwrite: a BatchNorm may be held in eval
    mode while the network trains.

    >>> network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2).eval())
    >>> with eval_mode(network):
    ...     [module.training for module in network.modules()]
    [False, False, False]
    >>> [module.training for module in network.modules()]
    [True, True, False]
    """
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for module, _ in modes:
            module.training = False
        yield
    finally:
        for module, training in modes:
            module.training = training
