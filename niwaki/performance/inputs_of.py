"""What some modules of a network are given in one pass."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

import torch
from torch import nn

from niwaki.errors import TraceError
from niwaki.performance.measure import FAILURES, evaluating
from niwaki.program.entry import calls_of


def inputs_of(network: nn.Module, paths: Collection[str], example_inputs: Any) -> dict[str, torch.Tensor]:
    """The first argument of each of some modules, by path, the last time that it runs in eval mode; none of those that
    do not run.

    Raises:
        TraceError: the network does not run on these inputs.

    >>> network = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    >>> {path: tuple(value.shape) for path, value in inputs_of(network, ["1"], torch.zeros(2, 3)).items()}
    {'1': (2, 4)}
    """
    found: dict[str, torch.Tensor] = {}

    def remember(path: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        found[path] = args[0]

    handles = [network.get_submodule(path).register_forward_pre_hook(partial(remember, path)) for path in paths]
    args, kwargs = calls_of(network, example_inputs)[0]
    try:
        with evaluating([network]):
            network(*args, **kwargs)
    except FAILURES as cause:
        raise TraceError(
            f"The network does not run on these inputs: {type(cause).__qualname__}: {cause}. Pass inputs that it "
            "accepts, on its device: a tensor or tuple for positional arguments, a dict for keywords."
        ) from cause
    finally:
        for handle in handles:
            handle.remove()
    return found
