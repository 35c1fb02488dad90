"""Passes that a model makes as it is, with its own weights and nothing tracked, before it is looked at.

A model may keep things outside of its modules: in `functools.lru_cache`, globals, attributes of classes. What is first
computed there while it is traced would stay behind: zeros where arithmetic was left out, fake tensors, another
precision. After such a pass these places hold what any pass of the user's would have left.
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

    The model, the random generators and the inputs are left as they were. A model or inputs without values (on the meta
    device, or fake) cannot run. Errors are left to whoever runs it next.
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
                with watch.watching(), UndoneWrites(parameters), suppress(Exception):  # the next run says what is wrong
                    model(*args, **kwargs)
