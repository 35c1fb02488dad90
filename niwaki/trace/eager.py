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
    """Inside, `torch.compile` does nothing: who watches operators and modules would have itself compiled with the
    network, which takes minutes, and hooks that came later than the compilation are passed over."""
    if "torch._dynamo" in sys.modules:  # else nothing is compiled yet, and importing it takes seconds
        with torch.compiler.set_stance("force_eager"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using `torch.compile", UserWarning)  # with hooks: they would fire twice
            yield
    else:
        yield


P = ParamSpec("P")


R = TypeVar("R")


def run_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, which runs a network, under `eagerly`; once more where the network itself has loaded the compiler
    meanwhile (`torch.cond` and flexible attention do), which then was in the way."""

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
