"""Run a model once as it is, with its own weights and nothing tracked, before it is traced.

A model may keep things outside of its modules: in `functools.lru_cache`, globals, attributes of classes. Values first
computed there during a trace would remain: zeros where arithmetic was skipped, fake tensors, another precision. After
an ordinary pass these places hold the values of any pass of the user.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch

from niwaki.trace.eager import eagerly
from niwaki.trace.fake import is_fake
from niwaki.trace.inventory import Inventory
from niwaki.trace.model_state import preserved
from niwaki.trace.modes import ModeWatch
from niwaki.trace.structures import ExampleCall, map_tensors, others_in, tensors_in
from niwaki.trace.writes import UndoneWrites


@eagerly()
def warm_up(model: torch.nn.Module, calls: Sequence[ExampleCall], train: bool = False) -> None:
    """Run ``model`` once on every call in eval mode and, with ``train``, in train mode too where that may differ.

    The model, the random generators and the inputs are restored. A model or inputs without values (on the meta device,
    or fake) cannot run. Errors are ignored: the next run raises them.
    """
    inventory = Inventory.of(model)
    if any(tensor.is_meta or is_fake(tensor) for tensor in (*inventory.tensors, *tensors_in(list(calls)))):
        return
    watch = ModeWatch(module for _, module in inventory.modules)
    for training in (False, True):
        if training and (watch.alike or not train):
            return
        for call in calls:
            with preserved(model, others_in(call)), torch.inference_mode(False), torch.no_grad():
                for _, module in inventory.modules:
                    module.training = training
                args, kwargs = map_tensors(call, lambda tensor: tensor.detach().clone())
                parameters = [parameter for _, parameter in inventory.parameters]
                with watch.watching(), UndoneWrites(parameters), suppress(Exception):  # the next run raises the error
                    model(*args, **kwargs)
