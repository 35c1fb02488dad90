"""Latency, measured: the only honest way to know it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

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
    modes = {name: network.training for name, network in networks.items()}
    times: dict[str, list[float]] = {name: [] for name in networks}
    try:
        for network in networks.values():
            network.eval()
        with torch.inference_mode():
            for network in networks.values():
                for _ in range(3):
                    network(x)
            end = time.perf_counter() + seconds
            rounds = 0
            while rounds < least_rounds or time.perf_counter() < end:
                for name, network in networks.items():
                    times[name].append(_milliseconds(network, x))
                rounds += 1
    finally:
        for name, network in networks.items():
            network.train(modes[name])
    return {name: _summary(values, len(x)) for name, values in times.items()}


def _milliseconds(network: nn.Module, x: Tensor) -> float:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    begin = time.perf_counter()
    network(x)
    if x.is_cuda:
        torch.cuda.synchronize(x.device)
    return (time.perf_counter() - begin) * 1e3


def _summary(values: list[float], batch: int) -> Latency:
    lower, middle, upper = statistics.quantiles(values, n=4)
    return Latency(middle, lower, upper, batch)
