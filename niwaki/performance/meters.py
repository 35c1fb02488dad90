"""Limits that are measured: the network is cut, run, and compared with the limit."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError
from niwaki.performance.activations import peak_activations
from niwaki.performance.measure import device_of, evaluating, interleaved
from niwaki.performance.operators import Timed, operators
from niwaki.program.entry import calls_of
from niwaki.program.module import Program
from niwaki.selection.budget import is_whole
from niwaki.trace.structures import tensors_in

_SECONDS = 0.5  # of measuring, per network
_LEAST = 15
_PASSES = 7  # at least, in which operators are timed

Readings = Mapping[str, Mapping[str, float]]  # of each measure: what the cut network costs, and the dense one


@dataclass(frozen=True, slots=True)
class Limit:
    """One limit: ``read(network)`` gives what the network costs and what the dense one does, measured alike. The limit
    is an amount, or a share of what the dense one costs if it is a float; ``gap`` is how much of it may be left.
    ``timed(network)``, where time is what is measured, tells how long each operator of a pass takes, in that network
    and in the dense one."""

    limit: float | int
    gap: float
    unit: str
    read: Callable[[nn.Module], tuple[float, float]]
    timed: Callable[[nn.Module], tuple[Timed, Timed]] | None = None

    def amount(self, dense: float) -> float:
        """The limit as an amount."""
        return self.limit if is_whole(self.limit) else self.limit * dense

    def filled(self, kept: float, dense: float) -> float:
        """The fraction of the limit that is used; 1 is all of it."""
        return kept / self.amount(dense)


def meters(space: SearchSpace, limits: Mapping[str, float | int], example_inputs: Any) -> dict[str, Limit]:
    """Make a `Limit` for each of ``limits``.

    Raises:
        BudgetError: there are no example inputs, or the model cannot be measured.
    """
    wanted = " and ".join(limits)
    if example_inputs is None:
        raise BudgetError(
            f"To measure {wanted}, niwaki must run the network: pass example inputs, on the model's device."
        )
    model = space.model
    if isinstance(model, Program):
        raise BudgetError(
            f"{wanted} cannot be measured for the space of an exported program. Choose from the space of the model "
            "itself, or set a limit in macs, params, units or memory."
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise BudgetError(f"The model is on the meta device, where it has no {wanted} to measure. Move it first.")
    args, kwargs = calls_of(model, example_inputs)[0]
    device = device_of([model])
    inputs = list(tensors_in((args, kwargs)))

    def latency(small: nn.Module) -> tuple[float, float]:
        runs = {"small": partial(small, *args, **kwargs), "dense": partial(model, *args, **kwargs)}
        with evaluating([small, model], runs.values()):
            times = interleaved(runs, device, 2 * _SECONDS, _LEAST)
        ratio = statistics.median(small / dense for small, dense in zip(times["small"], times["dense"], strict=True))
        dense = statistics.median(times["dense"])
        return ratio * dense, dense

    def activations(small: nn.Module) -> tuple[float, float]:
        left, dense = (peak_activations(one, partial(one, *args, **kwargs), inputs) for one in (small, model))
        return float(left), float(dense)

    def timed(small: nn.Module) -> tuple[Timed, Timed]:
        runs = [partial(small, *args, **kwargs), partial(model, *args, **kwargs)]
        with evaluating([small, model]), torch.inference_mode(False), torch.no_grad():  # else operators come undivided
            left, dense = operators(runs, device, 2 * _SECONDS, _PASSES)
        return left, dense

    known = {
        "latency": partial(Limit, gap=0.05, unit="microseconds", read=latency, timed=timed),
        "activations": partial(Limit, gap=0.01, unit="bytes", read=activations),
    }
    return {measure: known[measure](limit) for measure, limit in limits.items()}
