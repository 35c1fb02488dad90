"""Predict the latency of a network whose low-rank adapters are merged into the weights beside them.

It runs the operators of the network with adapters but for those of the adapters themselves, so that its work is a part
of what the search space knows. Their times are taken where they count: in merged networks, which are cut and timed.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from niwaki.core.cost import OperatorWork, Terms
from niwaki.core.space import BoolArray, SearchSpace
from niwaki.errors import MethodError
from niwaki.methods.lora.pairs import base_layers, find_pairs, merged_space
from niwaki.performance.measure import device_of, evaluating
from niwaki.performance.meters import meters
from niwaki.performance.operators import marked_operators
from niwaki.performance.predict import Unpredictable, narrowed, priced, reading
from niwaki.program.entry import calls_of
from niwaki.surgery.cut import cut


def merged_latency(space: SearchSpace, example_inputs: Any) -> Terms | None:
    """The nanoseconds of the merged network, by the axes of the cost model of ``space``; None if its model has no LoRA
    pairs, or such as no method merges.

    Raises:
        Unpredictable: the merged network runs other operators than those of the other that are no adapter's.
    """
    if not base_layers(space.model):
        return None
    try:
        pairs = find_pairs(space)
    except MethodError:
        return None
    view, number = merged_space(space, pairs)

    def merged(keep: BoolArray) -> nn.Module:
        whole = np.ones(space.num_units, dtype=bool)
        whole[number] = keep
        return without_adapters(cut(space.model, space.plan(whole)))

    dense = merged(np.ones(view.num_units, dtype=bool))
    view = replace(view, cost_model=replace(view.cost_model, work=_work(space, example_inputs)))
    meter = meters(replace(view, model=dense), {"latency": 1.0}, example_inputs)["latency"]
    assert meter.timed is not None
    readings = [reading(view, keep, *meter.timed(merged(keep))) for keep in narrowed(view)]
    return priced(view, readings).cost_model.latency


def without_adapters(model: nn.Module) -> nn.Module:
    """``model`` with the layer beside each LoRA pair in the place of the module that holds both. It takes as long as
    the network whose weights have taken over the pairs."""
    bases = base_layers(model)
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if child in bases:
                setattr(module, name, bases[child])
    return bases.get(model, model)


def _work(space: SearchSpace, example_inputs: Any) -> OperatorWork:
    """That of the operators of ``space`` which do not belong to an adapter."""
    model, work = space.model, space.cost_model.work
    if work is None:
        raise Unpredictable("the search space was made without a run")
    args, kwargs = calls_of(model, example_inputs)[0]
    inside: list[bool] = []  # of the modules that run now: whether an adapter's part does
    with evaluating([model]), torch.inference_mode(False), torch.no_grad(), _followed(model, inside):
        ran = marked_operators(lambda: model(*args, **kwargs), device_of([model]), lambda: bool(inside) and inside[-1])
    known = frozenset(work.names)
    ran = [one for one in ran if one[0] in known]
    if tuple(name for name, _ in ran) != work.names:
        raise Unpredictable("with its adapters it runs other operators than the search space was made from")
    stays = np.array([not adapter for _, adapter in ran], dtype=bool)
    new = np.cumsum(stays) - 1
    own = stays[work.operator]
    names = tuple(name for name, adapter in ran if not adapter)
    return OperatorWork(names, Terms(work.terms.constant[own], work.terms.axes[own]), new[work.operator[own]])


@contextmanager
def _followed(model: nn.Module, inside: list[bool]) -> Iterator[None]:
    """In the block, ``inside`` ends with True while a module that holds a pair runs, with False in the layer beside
    it."""

    def enter(adapter: bool) -> Any:
        return lambda module, args: inside.append(adapter)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        inside.pop()

    with ExitStack() as stack:
        for holder, base in base_layers(model).items():
            for module, adapter in ((holder, True), (base, False)):
                for hook in (
                    module.register_forward_pre_hook(enter(adapter)),
                    module.register_forward_hook(leave, always_call=True),
                ):
                    stack.callback(hook.remove)
        yield
