"""What was measured, as values that explain themselves."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Latency:
    """Microseconds of one forward pass in eval mode without gradients: the median, and the middle half, of ``rounds``
    passes. ``shapes``: of the input tensors. ``clock``: ``"wall"``, or ``"cpu"`` for the time the process computed."""

    median_us: float
    lower_us: float
    upper_us: float
    rounds: int
    shapes: tuple[tuple[int, ...], ...]
    threads: int
    device: str
    dtype: str
    clock: str

    def __str__(self) -> str:
        return (
            f"{self.median_us:,.0f} microseconds per forward pass (half of {self.rounds} rounds: {self.lower_us:,.0f} "
            f"to {self.upper_us:,.0f}), {_how(self)}"
        )


@dataclass(frozen=True, slots=True)
class Ratio:
    """The time of one network over that of another, measured right beside it: the median and the middle half."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.lower:.3f} to {self.upper:.3f})"


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """Networks that took turns, by name. ``ratios``: each one's time over that of the first, round by round."""

    networks: Mapping[str, Latency]
    ratios: Mapping[str, Ratio]

    def __str__(self) -> str:
        first, one = next(iter(self.networks.items()))
        width = max(map(len, self.networks))
        lines = [f"Microseconds per forward pass, median (half of {one.rounds} rounds), {_how(one)}:"]
        for name, found in self.networks.items():
            line = f"  {name:<{width}} {found.median_us:>12,.0f} ({found.lower_us:,.0f} to {found.upper_us:,.0f})"
            lines.append(line if name == first else f"{line}, {self.ratios[name]} of {first}")
        return "\n".join(lines)


def timing(
    values: Sequence[float],
    *,
    shapes: tuple[tuple[int, ...], ...],
    threads: int,
    device: str,
    dtype: str,
    clock: str,
) -> Latency:
    """The microseconds of all passes, summed up."""
    lower, middle, upper = statistics.quantiles(values, n=4)
    return Latency(middle, lower, upper, len(values), shapes, threads, device, dtype, clock)


def compared(times: Mapping[str, Sequence[float]], found: Mapping[str, Latency]) -> Latencies:
    """All networks beside the first."""
    first = next(iter(times.values()))
    ratios = {name: ratio_of(values, first) for name, values in times.items()}
    return Latencies(found, ratios)


def ratio_of(times: Sequence[float], beside: Sequence[float]) -> Ratio:
    """Of two networks that took turns."""
    lower, middle, upper = statistics.quantiles([one / other for one, other in zip(times, beside, strict=True)], n=4)
    return Ratio(middle, lower, upper)


def _how(one: Latency) -> str:
    shapes = " ".join("x".join(map(str, shape)) for shape in one.shapes)
    threads = f"{one.threads} thread" + "s" * (one.threads != 1)
    clock = ", computing time instead of wall time" * (one.clock == "cpu")
    return f"inputs {shapes}, {one.dtype}, {one.device}, {threads}, eval mode{clock}"
