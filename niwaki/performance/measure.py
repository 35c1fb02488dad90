"""Measure latency: interleaved rounds of networks, and values that print what was measured."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, overload

import torch
from torch import nn
from torch.export import ExportedProgram

from niwaki.core.html import html_table
from niwaki.core.modes import eval_mode
from niwaki.core.scalars import is_whole
from niwaki.errors import MethodError, TraceError
from niwaki.program.entry import calls_of
from niwaki.trace.model_state import preserved
from niwaki.trace.outside import preserved_outside
from niwaki.trace.structures import map_tensors, others_in, tensors_in


@dataclass(frozen=True, slots=True, repr=False)
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

    __repr__ = __str__


@dataclass(frozen=True, slots=True)
class Ratio:
    """The time of one network over that of another, measured right beside it: the median and the middle half."""

    median: float
    lower: float
    upper: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.lower:.3f} to {self.upper:.3f})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
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

    __repr__ = __str__

    def _repr_html_(self) -> str:
        first, one = next(iter(self.networks.items()))
        rows = [
            (name, f"{found.median_us:,.0f}", f"{found.lower_us:,.0f} to {found.upper_us:,.0f}", str(self.ratios[name]))
            for name, found in self.networks.items()
        ]
        headings = ("", "median, μs", "middle half", f"of {first}")
        return html_table("Microseconds per forward pass", headings, rows, [f"{one.rounds:,} rounds, {_how(one)}"])


def timing(
    values: Sequence[float],
    *,
    shapes: tuple[tuple[int, ...], ...],
    threads: int,
    device: str,
    dtype: str,
    clock: str,
) -> Latency:
    """Summarise the microseconds of all passes."""
    lower, middle, upper = statistics.quantiles(values, n=4)
    return Latency(middle, lower, upper, len(values), shapes, threads, device, dtype, clock)


def compared(times: Mapping[str, Sequence[float]], found: Mapping[str, Latency]) -> Latencies:
    """Compare all networks with the first."""
    first = next(iter(times.values()))
    ratios = {name: ratio_of(values, first) for name, values in times.items()}
    return Latencies(found, ratios)


def ratio_of(times: Sequence[float], beside: Sequence[float]) -> Ratio:
    """The ratio of two networks that took turns."""
    lower, middle, upper = statistics.quantiles([one / other for one, other in zip(times, beside, strict=True)], n=4)
    return Ratio(middle, lower, upper)


def _how(one: Latency) -> str:
    shapes = " ".join("x".join(map(str, shape)) for shape in one.shapes)
    threads = f"{one.threads} thread" + "s" * (one.threads != 1)
    clock = ", computing time instead of wall time" * (one.clock == "cpu")
    return f"inputs {shapes}, {one.dtype}, {one.device}, {threads}, eval mode{clock}"


Clock = Literal["wall", "cpu"]


Network = nn.Module | ExportedProgram


FAILURES = (RuntimeError, TypeError, ValueError, LookupError, AttributeError)


_CLOCKS: dict[Clock, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


@overload
def latency(
    model: Network,
    inputs: Any,
    *,
    seconds: float = ...,
    rounds: int = ...,
    threads: int | None = ...,
    clock: Clock = ...,
) -> Latency: ...


@overload
def latency(
    model: Mapping[str, Network],
    inputs: Any,
    *,
    seconds: float = ...,
    rounds: int = ...,
    threads: int | None = ...,
    clock: Clock = ...,
) -> Latencies: ...


def latency(
    model: Network | Mapping[str, Network],
    inputs: Any,
    *,
    seconds: float = 2.0,
    rounds: int = 15,
    threads: int | None = None,
    clock: Clock = "wall",
) -> Latency | Latencies:
    """Measure one forward pass in eval mode without gradients, on the device of the model.

    Several networks, given by name, take turns, forwards in one round and backwards in the next, so that a busy moment
    of the machine affects all of them. They are compared with the first one round by round: the median of these ratios
    holds still where the times themselves do not. Each runs three times before anything counts. Accelerators are
    waited for before and after each pass.

    Args:
        model: a network, an exported program, or several by name.
        inputs: one call, on the device of the model: a tensor or tuple is positional, a dict is keywords.
        seconds: how long to measure all of them together, on the wall.
        rounds: the least number of passes of each.
        threads: of torch on the CPU while this measures; None: as many as it has now.
        clock: ``"wall"``, or ``"cpu"``: the time that this process computed, all threads together. On the CPU of a
            machine that others keep busy, that is, with ``threads=1``, what the pass would take alone.

    The networks are left as they were.

    Returns:
        `Latency` in microseconds for one network, `Latencies` for several. Both print themselves.

    Raises:
        MethodError: there is nothing to measure, or an argument makes no sense.
        TraceError: a network does not run on these inputs, or has no values (on the meta device).

    Example:
        >>> import torch, niwaki
        >>> net, x = torch.nn.Linear(4, 4), torch.zeros(2, 4)
        >>> niwaki.latency(net, x, seconds=0).rounds
        15
        >>> pair = niwaki.latency({"net": net, "twice": torch.nn.Sequential(net, net)}, x, seconds=0)
        >>> list(pair.ratios)
        ['net', 'twice']
    """
    networks: dict[str, Network] = dict(model) if isinstance(model, Mapping) else {"model": model}
    _check(networks, rounds, threads, clock)
    call = calls_of(next(iter(networks.values())), inputs)[0]
    args, kwargs = map_tensors(call, lambda tensor: tensor.detach().clone())  # a network may write to its inputs
    modules = {name: one.module() if isinstance(one, ExportedProgram) else one for name, one in networks.items()}
    device = device_of(modules.values())
    with ExitStack() as stack:
        for one in networks.values():
            if isinstance(one, nn.Module):
                stack.enter_context(preserved(one, others_in((args, kwargs))))
        stack.enter_context(preserved_outside(part for module in modules.values() for part in module.modules()))
        stack.enter_context(_threads(threads))
        runs = {name: partial(module, *args, **kwargs) for name, module in modules.items()}
        if not stack.enter_context(evaluating(modules.values(), runs.values())):
            for name, run in runs.items():
                _try(name, run)
        times = interleaved(runs, device, seconds, rounds, clock)
        about = partial(
            timing,
            shapes=tuple(tuple(tensor.shape) for tensor in tensors_in((args, kwargs))),
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
            clock=clock,
        )
        found = {name: about(values, dtype=_dtype(modules[name], args, kwargs)) for name, values in times.items()}
    return compared(times, found) if isinstance(model, Mapping) else found["model"]


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    least_rounds: int,
    clock: Clock = "wall",
) -> dict[str, list[float]]:
    """The microseconds of each of the ``runs``, which take turns, after three of each that do not count."""
    now = _CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    order = list(runs.items())
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least_rounds or time.perf_counter() < end:
        for name, run in order:
            wait(device)
            begin = now()
            run()
            wait(device)
            times[name].append((now() - begin) * 1e6)
        order.reverse()
        rounds += 1
    return times


@contextmanager
def evaluating(networks: Iterable[nn.Module], runs: Iterable[Callable[[], object]] = ()) -> Iterator[bool]:
    """Inside, the networks are in eval mode and record no gradients; modes are restored. In inference mode, unless one
    of the ``runs`` fails in it: a network whose output is a gradient cannot differentiate there. Gives which it is."""
    with eval_mode(*networks):
        infers = _infer(runs)
        with torch.inference_mode() if infers else torch.no_grad():
            yield infers


def _infer(runs: Iterable[Callable[[], object]]) -> bool:
    """Whether all runs go through in inference mode; what else is wrong with one shows in the next."""
    try:
        with torch.inference_mode():
            for run in runs:
                run()
    except FAILURES:
        return False
    return True


def device_of(networks: Iterable[nn.Module]) -> torch.device:
    """The device of the first parameter or buffer, or the CPU."""
    tensors = (tensor for network in networks for tensor in (*network.parameters(), *network.buffers()))
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def _check(networks: Mapping[str, object], rounds: int, threads: int | None, clock: str) -> None:
    if not networks:
        raise MethodError("There is no network to measure: give one, or several by name, {'dense': model, ...}.")
    for name, network in networks.items():
        if not isinstance(network, Network):
            raise MethodError(
                f"{name!r} is a {type(network).__qualname__}, which cannot be measured: give a torch.nn.Module or a "
                "torch.export.ExportedProgram."
            )
        if isinstance(network, nn.Module) and any(value.is_meta for value in network.parameters()):
            raise TraceError(f"{name!r} is on the meta device, where it has no latency. Move it to a real one first.")
    if not is_whole(rounds) or rounds < 2:
        raise MethodError(f"rounds={rounds!r} must be a whole number, 2 or more: quartiles need something to divide.")
    if threads is not None and (not is_whole(threads) or threads < 1):
        raise MethodError(f"threads={threads!r} must be a whole number, 1 or more, or None for as many as torch has.")
    if clock not in _CLOCKS:
        raise MethodError(f"clock={clock!r} must be 'wall' or 'cpu'.")


def _try(name: str, run: Callable[[], object]) -> None:
    try:
        run()
    except FAILURES as cause:
        raise TraceError(
            f"{name!r} does not run on these inputs: {type(cause).__qualname__}: {cause}. Pass inputs that it accepts, "
            "on its device: a tensor or tuple for positional arguments, a dict for keywords."
        ) from cause


@contextmanager
def _threads(threads: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def quiet_clock(device: torch.device) -> Clock:
    """The clock that other processes disturb least: on the CPU with one thread that of the time computed."""
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def wait(device: torch.device) -> None:
    """Wait until this accelerator has finished all its work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _dtype(network: nn.Module, args: Any, kwargs: Any) -> str:
    tensors = (*network.parameters(), *tensors_in((args, kwargs)))
    return next((str(tensor.dtype).removeprefix("torch.") for tensor in tensors if tensor.is_floating_point()), "none")
