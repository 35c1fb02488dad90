"""How long layers take with implants: a second layer and putting outputs in their order cost time that MACs do not
show."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from niwaki.core.cost import ImplantTimes
from niwaki.core.edits import Implant
from niwaki.core.names import named_parameters
from niwaki.core.positions import Positions
from niwaki.core.space import SearchSpace
from niwaki.errors import BudgetError, MethodError
from niwaki.implants.layers import ImplantLayer, ImplantLayers
from niwaki.performance.inputs_of import inputs_of
from niwaki.performance.measure import device_of, evaluating, interleaved, quiet_clock

_SECONDS, _ROUNDS = 0.1, 9  # of measuring one layer
_FEWEST = 4  # outputs of a layer that is timed


def implant_times(space: SearchSpace, implants: ImplantLayers, example_inputs: Any) -> Mapping[str, ImplantTimes]:
    """The times of the layers of ``implants``, by the names of their weights.

    Each is run with what it is given in one pass of the dense network: whole, with half of its outputs, and with half
    of them and as many implants, or half as many. Few outputs are taken to save nothing as implants.

    Raises:
        MethodError: ``implants`` are no `niwaki.implants.ImplantLayers`, or those of another network.
        BudgetError: a layer does not run.
    """
    if not isinstance(implants, ImplantLayers) or implants.space.model is not space.model:
        raise MethodError(
            "implants must be the layers that can have them in this network: niwaki.implants.ImplantLayers.of(space)."
        )
    given = inputs_of(space.model, [layer.module for layer in implants.layers], example_inputs)
    shapes = {name: tuple(parameter.shape) for name, parameter in named_parameters(space.model)}
    found = {}
    for layer in implants.layers:
        if layer.module not in given:
            raise BudgetError(
                f"{layer.module!r} does not run with these example inputs, so that its implants cannot be timed. Pass "
                "inputs that reach it."
            )
        found[layer.weight] = _timed(space.model, layer, shapes[layer.weight], given[layer.module])
    return found


def _timed(model: nn.Module, layer: ImplantLayer, shape: tuple[int, ...], given: torch.Tensor) -> ImplantTimes:
    dense, outputs = model.get_submodule(layer.module), shape[0]
    if outputs < _FEWEST:
        return ImplantTimes(shape[1], 0.0, 0.0, 0.0, layer.rank)
    half, quarter = outputs // 2, outputs // 4
    networks = {
        "dense": dense,
        "half": narrowed_layer(dense, half),
        "many": _implanted(layer, dense, half, half),
        "few": _implanted(layer, dense, half, quarter),
    }
    runs = {name: partial(network, given) for name, network in networks.items()}
    with evaluating(networks.values()):
        device = device_of([dense])
        times = interleaved(runs, device, _SECONDS, _ROUNDS, quiet_clock(device))

    def more(name: str, other: str) -> float:  # in nanoseconds; side by side, since other processes disturb
        return 1000 * statistics.median(a - b for a, b in zip(times[name], times[other], strict=True))

    whole = max(0.0, more("dense", "half") / (outputs - half))
    slim = min(max(0.0, more("many", "few") / (half - quarter)), whole)
    return ImplantTimes(shape[1], whole, slim, max(0.0, more("many", "half") - half * slim), layer.rank)


def _implanted(layer: ImplantLayer, dense: nn.Module, whole: int, slim: int) -> nn.Module:
    """The layer with ``whole`` outputs as they are and ``slim`` implants, in turns."""
    number = whole + slim
    rows = [2 * place for place in range(slim)]
    small = narrowed_layer(dense, number)
    weight: Any = small.weight
    has_bias = small.bias is not None
    edit = Implant(layer.module, Positions(range(number)), Positions(rows), tuple(weight.shape), has_bias, layer.rank)
    return edit.replacement(small)


def narrowed_layer(layer: nn.Module, outputs: int) -> nn.Module:
    """A copy of a convolution or linear layer with its first ``outputs``."""
    small: Any = copy.copy(layer)
    small._parameters = {
        name: None if value is None else nn.Parameter(value.detach()[:outputs].clone(), requires_grad=False)
        for name, value in layer._parameters.items()
    }
    for name in ("out_channels", "out_features"):
        if hasattr(small, name):
            setattr(small, name, outputs)
    found: nn.Module = small
    return found
