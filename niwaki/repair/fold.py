"""Move the constants that removed units still send out into the biases of the layers that read them.

A unit whose producers are zero is not silent where something on the way maps zero to another value (sigmoid, exp, an
added number): the layer that reads it adds the same constant everywhere. The cut drops that constant and is exact all
the same, since in the masked network the reading weights are zero too; the bias of the reading layer can keep it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from niwaki.core.names import named_parameters
from niwaki.core.plan import Plan
from niwaki.core.space import SearchSpace, check_space
from niwaki.repair.calibration import Samples
from niwaki.repair.constants import lost_constants, moved_constants, outputs, unexplained
from niwaki.repair.consumers import readings_of, removed_from
from niwaki.surgery.cut import duplicate
from niwaki.surgery.history import check_plan
from niwaki.trace.eager import eagerly
from niwaki.trace.model_state import preserved
from niwaki.trace.tracer import example_calls


@dataclass(frozen=True, slots=True, eq=False)
class Folded:
    """The result of `fold_constants`. ``model``: a dense copy, ready for `niwaki.cut`. ``folded``: the layers whose
    bias took up a constant. ``left``: the layers, and the parameters outside of known layers, that lose one, each with
    the reason."""

    model: nn.Module
    folded: tuple[str, ...]
    left: Mapping[str, str]

    def __str__(self) -> str:
        lines = [f"Constants of removed units went into the biases of {len(self.folded)} layers."]
        return "\n".join([*lines, *(f"  not {name}: {why}" for name, why in self.left.items())])


@eagerly()
def fold_constants(space: SearchSpace, plan: Plan, example_inputs: Any) -> Folded:
    """Keep the constants that removed units would still send out once their producers are zero.

    Args:
        space: the search space of the model, which is not changed.
        plan: the plan of the cut.
        example_inputs: as for `niwaki.search_space`. The copy runs on them in eval mode, and on further inputs with
            their entries shuffled and scaled: a value that is equal for all samples counts as a constant.

    The cut of ``Folded.model`` computes what the original computes with only the *producers* of the removed units at
    zero. That is exact unless something is in ``Folded.left``: a layer whose input is not constant, that has no bias,
    that pads with zeros (the constant is missing at the border), or whose class niwaki does not know. Every fold is
    tried; niwaki knows linear layers, convolutions, transposed ones, recurrent layers and the projections of
    ``nn.MultiheadAttention``.

    Raises:
        PlanError: the plan is for another network.

    Example:
        >>> import torch, niwaki
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Sigmoid(), torch.nn.Linear(8, 2)).eval()
        >>> x = torch.randn(3, 4)
        >>> space = niwaki.search_space(net, x)
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(units=0.5))
        >>> niwaki.fold_constants(space, plan, x).folded
        ('2',)
    """
    check_space(space)
    check_plan(plan)
    plan.check_fits(space.model)
    model = duplicate(space.model)
    _silence(space, plan, model)
    readings = readings_of(space, plan, model)
    with preserved(model), torch.no_grad():
        model.eval()
        samples = Samples.of(example_calls(example_inputs))
        expected = outputs(model, samples)
        folded, left = moved_constants(model, lost_constants(model, readings, samples), samples)
        if not left and unexplained(model, readings, expected, samples):
            left = {"": "a removed unit is read outside of all modules, and the outputs change with it"}
    return Folded(model, tuple(folded), left)


def _silence(space: SearchSpace, plan: Plan, model: nn.Module) -> None:
    """Zero the producers of the removed units."""
    parameters = dict(named_parameters(model))
    with torch.no_grad():
        for place in space.dims:
            removed = removed_from(plan, place.tensor, place.dim, parameters)
            if place.role.produces and place.parameter and removed is not None:
                parameters[place.tensor].index_fill_(place.dim, removed, 0)
