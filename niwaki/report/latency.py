"""Latency, measured: the only honest way to know it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one forward pass in eval mode: the median, and the middle half of all measurements."""

    median_ms: float
    lower_ms: float
    upper_ms: float
    batch: int

    def __str__(self) -> str:
        return f"{self.median_ms:.2f} ms"


def measure_latency(
    networks: Mapping[str, nn.Module], x: Tensor, seconds: float = 2.0, least_rounds: int = 15
) -> dict[str, Latency]:
    """Measure networks side by side on the input ``x`` [B, ...].

    The networks take turns, so that a busy moment of the machine meets all of them, after a warm-up of three passes
    each. Modes are restored.

    Args:
        networks: what to measure, by name, all on the device of ``x``.
        x: one input.
        seconds: how long to measure all of them together; no fewer than ``least_rounds`` rounds.
        least_rounds: the least number of passes of each.

    Example:
        >>> net = torch.nn.Linear(4, 4)
        >>> measure_latency({"net": net}, torch.zeros(1, 4), seconds=0.01)["net"].batch
        1
    """
    batch = len(x)
    return {
        name: _summary(values, batch)
        for name, values in interleaved(
            {name: (network, (x,), {}) for name, network in networks.items()}, x.device, seconds, least_rounds
        ).items()
    }


def interleaved(
    calls: Mapping[str, tuple[nn.Module, tuple[Any, ...], Mapping[str, Any]]],
    device: torch.device,
    seconds: float,
    least_rounds: int,
) -> dict[str, list[float]]:
    """The milliseconds of each pass of networks, given with their positional and keyword arguments, that take turns."""
    modes = [(module, module.training) for network, _, _ in calls.values() for module in network.modules()]
    times: dict[str, list[float]] = {name: [] for name in calls}
    try:
        for network, _, _ in calls.values():
            network.eval()
        with torch.inference_mode():
            for network, args, kwargs in calls.values():
                for _ in range(3):
                    network(*args, **kwargs)
            end = time.perf_counter() + seconds
            rounds = 0
            while rounds < least_rounds or time.perf_counter() < end:
                for name, (network, args, kwargs) in calls.items():
                    times[name].append(_milliseconds(lambda: network(*args, **kwargs), device))  # noqa: B023
                rounds += 1
    finally:
        for module, mode in modes:
            module.training = mode
    return times


def _milliseconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    begin = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - begin) * 1e3


def _summary(values: list[float], batch: int) -> Latency:
    lower, middle, upper = statistics.quantiles(values, n=4)
    return Latency(middle, lower, upper, batch)
