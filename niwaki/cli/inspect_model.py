"""Analyse a network without training it: what can be pruned, what cannot and why, and the cost at several budgets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

import niwaki
from niwaki.cli.inputs import GivenInput, as_call, images_of
from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError, PlanError, RunError
from niwaki.networks import ExampleNetwork, NetworkRequest, example_network
from niwaki.report.inspection import Inspection, Law, Prediction, group_figures, reasons
from niwaki.testing.models import check_model
from niwaki.trace.structures import tensors_in

Say = Callable[[str], None]

LAW_PLANS = 3  # the number of random plans that are tried


@dataclass(frozen=True, slots=True)
class Request:
    """A network to inspect, and what to compute. ``inputs``: used in place of the usual ones of the network."""

    model: str
    inputs: tuple[GivenInput, ...] = ()
    classes: int | None = None
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)
    check: bool = False
    meta: bool = False
    allow_inexact: bool = False
    as_graph: bool = False
    erase: bool = False


def inspect_model(request: Request, say: Say = lambda stage: None) -> tuple[SearchSpace, Inspection]:
    """Build the network, analyse it, and price it; ``say`` is called with each step.

    Raises:
        NiwakiError: the network cannot be built, run, or checked.

    >>> space, found = inspect_model(Request("mlp", check=True))
    >>> found.units, f"{found.coverage:.1%}", found.law.holds
    (384, '100.0%', True)
    """
    if request.check and request.meta:
        raise RunError(
            "--check computes outputs, and a network on the meta device has no weights. Omit one of the two."
        )
    torch.manual_seed(0)
    say(f"building {request.model}")
    found = _specimen(request)
    say(f"analysing {request.model}")
    begin = time.perf_counter()
    space = niwaki.search_space(
        found.model,
        found.inputs,
        allow_inexact=request.allow_inexact,
        as_graph=request.as_graph,
        erase=request.erase,
    )
    seconds = time.perf_counter() - begin
    weightless = any(parameter.is_meta for parameter in found.model.parameters())
    law = None
    if request.check:
        say(f"checking that cuts are exact on {LAW_PLANS} random plans")
        law = _law(space.model, found.inputs)
    return space, Inspection(
        model=request.model,
        inputs=described(found.inputs),
        coverage=space.coverage,
        units=space.num_units,
        dense=space.cost(),
        least=space.least_cost(),
        groups=group_figures(space),
        reasons=reasons(space),
        criterion="random" if weightless else "magnitude",
        predictions=tuple(_predictions(space, request.shares, weightless, say)),
        law=law,
        notes=space.notes,
        seconds=seconds,
        structures=space.structures,
    )


def described(inputs: Any) -> str:
    """Example inputs in words.

    >>> described({"input_ids": torch.zeros(1, 32, dtype=torch.int64)})
    'input_ids 1x32 int64'
    >>> described((torch.zeros(1, 3, 8, 8),))
    '1x3x8x8 float32'
    """
    if isinstance(inputs, dict):
        return ", ".join(f"{name} {described(value)}" for name, value in inputs.items())
    return ", ".join(
        f"{'x'.join(map(str, leaf.shape)) or 'scalar'} {str(leaf.dtype).removeprefix('torch.')}"
        for leaf in tensors_in(inputs)
    )


def _specimen(request: Request) -> ExampleNetwork:
    found = example_network(request.model, NetworkRequest(request.classes, images_of(request.inputs)), request.meta)
    if request.inputs:
        return ExampleNetwork(found.model, as_call(request.inputs, found.model))
    if found.inputs is None:
        raise RunError(
            f"The inputs of {request.model} are not known. Give them with --input, once per argument, such as "
            "--input 1x3x224x224 or --input input_ids=1x16:int64; a factory can also return (model, example_inputs)."
        )
    return found


def _law(model: torch.nn.Module, inputs: Any) -> Law:
    try:
        report = check_model(model, inputs, plans=LAW_PLANS)
    except AssertionError as failure:
        return Law(False, str(failure))
    return Law(True, str(report), report.forward, report.backward)


def _predictions(space: SearchSpace, shares: Sequence[float], weightless: bool, say: Say) -> Iterator[Prediction]:
    if not space.groups:
        return
    scores = niwaki.score(space, _random if weightless else "magnitude")
    for share in shares:
        say(f"choosing units for {share:.0%} of the MACs")
        try:
            yield Prediction(share, space.cost(niwaki.choose(space, scores, niwaki.Budget(macs=share))))
        except BudgetError:
            yield Prediction(share, None, "out of reach")
        except PlanError as error:
            yield Prediction(share, None, str(error))


def _random(space: SearchSpace) -> Any:
    return np.random.default_rng(0).random(space.num_units)
