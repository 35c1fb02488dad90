"""Which readers of removed units get new weights, and why the others do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from torch import nn

from niwaki.core.names import named_parameters
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace
from niwaki.repair.consumers import removed_from
from niwaki.repair.linear_maps import LinearMap, is_known, of_its_own

_NO_LAYER = "it is not the matrix of a layer whose sums can be seen from outside"
_RECURRENT = "it reads hidden states, which the recurrent layer does not show"
_COMPLEX = "its weights are complex numbers, and only real ones are fitted"


def fitted_layers(
    model: nn.Module, layers: Mapping[str, Sequence[LinearMap]], replaced: set[str], left: dict[str, str]
) -> dict[str, Sequence[LinearMap]]:
    """The layers that are what their class says, with real weights of their own; the others go to ``left``."""
    uses = Counter(id(value) for module in model.modules() for value in module._parameters.values())
    found = {}
    for name, maps in layers.items():
        layer, why = maps[0].layer, ""
        if any(one.sums.weight.is_complex() for one in maps):
            why = _COMPLEX
        elif not is_known(layer, maps):
            why = of_its_own(layer)
        elif name in replaced:
            why = "the plan puts another module in its place"
        elif any(uses[id(value)] > 1 for value in layer._parameters.values() if value is not None):
            why = "it shares its weight or bias with another module"
        if why:
            left.update({one.title(name): why for one in maps})
        else:
            found[name] = maps
    return found


def no_layers(
    space: SearchSpace, plan: Plan, model: nn.Module, readers: Mapping[str, Sequence[LinearMap]]
) -> dict[str, str]:
    """The parameters that read removed units in other ways, each with the reason why it has no new weights."""
    parameters = dict(named_parameters(model))
    known = {id(one.sums.weight) for maps in readers.values() for one in maps}
    recurrent = {
        id(value)
        for module in model.modules()
        if isinstance(module, nn.RNNBase | nn.RNNCellBase)
        for value in module._parameters.values()
    }
    return {
        place.tensor: _RECURRENT if id(parameters[place.tensor]) in recurrent else _NO_LAYER
        for place in space.dims
        if place.role.consumes
        and place.parameter
        and id(parameters[place.tensor]) not in known
        and removed_from(plan, place.tensor, place.dim, parameters) is not None
    }
