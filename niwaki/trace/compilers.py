"""Networks that load torch's compiler while they are looked at."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from niwaki.compiled import eagerly
from niwaki.errors import TraceError

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
