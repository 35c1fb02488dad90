"""Networks that torch has compiled, run as the Python code that was compiled."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


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
