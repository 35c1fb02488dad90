"""A search space that knows the latency of its networks, as it is predicted from the times of operators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from niwaki.core.space import SearchSpace, check_space
from niwaki.errors import BudgetError
from niwaki.implants.layers import ImplantLayers
from niwaki.performance.fit import read_operators
from niwaki.performance.implant_times import implant_times
from niwaki.performance.merged import merged_latency
from niwaki.performance.meters import meters
from niwaki.performance.predict import Unpredictable, narrowed, priced
from niwaki.trace.model_state import preserved


def timed(space: SearchSpace, example_inputs: Any, *, implants: ImplantLayers | None = None) -> SearchSpace:
    """``space`` with a cost model that predicts the latency of one forward pass in eval mode, for budgets such as
    ``niwaki.Budget(latency=0.6)`` in trainings and in masks that are learnt, which cannot run cut networks.

    Three networks, with three quarters, a half and a quarter of the units of every group, are cut, and their operators
    are timed beside those of the dense one, for a second each: on the device of the model, with the threads that torch
    has. How the time of each operator falls with its work is fitted to these (see `niwaki.performance.predict`). What
    is predicted is a share; `niwaki.latency` measures what came of it.

    Of a model with LoRA pairs the network is timed as well into whose weights they are merged, by cutting and timing
    three of its kind: that is what a limit of the latency means to `niwaki.LHSPG` and `niwaki.ATP`. To all else it is
    the latency of the network as it is.

    Args:
        space: of a model with its weights, not of an exported program.
        example_inputs: of the passes that are timed, on the device of the model: a tensor or tuple is positional, a
            dict is keywords. The model is not changed.
        implants: layers whose implants are timed too, ``niwaki.implants.ImplantLayers.of(space)``: with them
            `niwaki.implants.choose` follows limits of the latency. Each layer is run alone, whole and with implants,
            for a tenth of a second.

    Raises:
        MethodError: ``implants`` are those of another network.
        BudgetError: there are no inputs, the model cannot be run, or it runs other operators than the search space was
            made from.

    Example:
        >>> import niwaki, torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 512), torch.nn.ReLU(), torch.nn.Linear(512, 64))
        >>> x = torch.randn(64, 64)
        >>> space = niwaki.timed(niwaki.search_space(model, x), x)  # doctest: +SKIP
        >>> plan = niwaki.choose(space, niwaki.score(space, "magnitude"), niwaki.Budget(latency=0.6))  # doctest: +SKIP
    """
    check_space(space)
    meter = meters(space, {"latency": 1.0}, example_inputs)["latency"]
    try:
        with preserved(space.model):
            readings = [read_operators(space, meter, keep) for keep in narrowed(space)]
            merged = merged_latency(space, example_inputs)
            times = {} if implants is None else implant_times(space, implants, example_inputs)
    except Unpredictable as cause:
        raise BudgetError(
            f"The latency of this network cannot be predicted from the times of its operators: {cause}. Build the "
            "search space from the same inputs, or let niwaki.choose measure cut networks: "
            "niwaki.choose(..., example_inputs=x)."
        ) from cause
    found = priced(space, readings)
    model = replace(found.cost_model, latency_merged=merged, implant_times=times)
    return replace(found, cost_model=model)
