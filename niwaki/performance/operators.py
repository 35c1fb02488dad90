"""List the operators of one forward pass, and time each of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.performance.measure import wait
from niwaki.trace.eager import eagerly
from niwaki.trace.operators import traits
from niwaki.trace.recorder import COMPOSED

_now = time.perf_counter_ns
Timed = tuple[tuple[str, ...], tuple[float, ...]]  # the operators in their order, and the nanoseconds of each


class _Stopwatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Times every operator by itself, as the recorder of a search space sees them; accelerators are waited for.
    ``marks``: what ``mark`` says at each of them."""

    def __init__(self, device: torch.device, mark: Callable[[], bool] = lambda: False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._device, self._mark = device, mark
        self.marks: list[bool] = []
        self.names: list[str] = []
        self.times: list[float] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if traits(func).inquires:
            return func(*args, **(kwargs or {}))
        if func in COMPOSED:
            with self:
                return func.decompose(*args, **(kwargs or {}))
        wait(self._device)
        begin = _now()
        result = func(*args, **(kwargs or {}))
        wait(self._device)
        self.times.append(float(_now() - begin))
        self.names.append(str(func))
        self.marks.append(self._mark())
        return result


@eagerly()
def operators(
    runs: Sequence[Callable[[], object]], device: torch.device, seconds: float, least_rounds: int
) -> list[Timed]:
    """The operators of each of ``runs``, which take turns, and the median time of each operator over several rounds,
    after one that does not count. The caller sees to modes and gradients.

    Raises:
        RuntimeError: the same network ran different operators.

    >>> net, x = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), torch.zeros(1, 4)
    >>> with torch.no_grad():
    ...     ((names, nanoseconds),) = operators([lambda: net(x)], torch.device("cpu"), 0.0, 3)
    >>> names, len(nanoseconds)
    (('aten.t.default', 'aten.addmm.default', 'aten.relu.default'), 3)
    """
    for run in runs:
        run()
    rounds: list[list[_Stopwatch]] = []
    end = time.perf_counter() + seconds
    while len(rounds) < least_rounds or time.perf_counter() < end:
        rounds.append([])
        for run in runs:
            with _Stopwatch(device) as watch:
                run()
            rounds[-1].append(watch)
    found = []
    for passes in zip(*rounds, strict=True):
        if any(watch.names != passes[0].names for watch in passes):
            raise RuntimeError("it does not run the same operators each time")
        times = zip(*(watch.times for watch in passes), strict=True)
        found.append((tuple(passes[0].names), tuple(map(statistics.median, times))))
    return found


@eagerly()
def marked_operators(
    run: Callable[[], object], device: torch.device, mark: Callable[[], bool]
) -> list[tuple[str, bool]]:
    """The operators of one pass, and what ``mark`` says while each of them runs. The caller sees to modes and
    gradients."""
    with _Stopwatch(device, mark) as watch:
        run()
    return list(zip(watch.names, watch.marks, strict=True))
