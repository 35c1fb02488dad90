"""Run compiled networks as the Python code that was compiled, so that every operator can be seen."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

from niwaki.errors import TraceError


@contextmanager
def eagerly() -> Iterator[None]:
    """Inside, `torch.compile` does nothing. A mode that watches operators would be compiled with the network, which
    takes minutes, and hooks registered after the compilation would not run."""
    if "torch._dynamo" in sys.modules:  # if it is not imported, nothing is compiled yet; importing it takes seconds
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # with hooks: they would fire twice
            yield
    else:
        yield


P = ParamSpec("P")


R = TypeVar("R")


def run_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Run ``function``, which runs a network, under `eagerly`. It runs once more if the network itself loaded the
    compiler (as `torch.cond` and flexible attention do), which then was active."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        loaded = "torch._dynamo" in sys.modules
        try:
            with eagerly():
                return function(*args, **kwargs)
        except TraceError:
            if loaded or "torch._dynamo" not in sys.modules:
                raise
        with eagerly():
            return function(*args, **kwargs)

    return run
