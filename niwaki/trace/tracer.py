"""One eager run of a model, recorded operator by operator below autograd."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch

from niwaki.errors import TraceError
from niwaki.trace.attributes import Tracking
from niwaki.trace.compilers import run_eagerly
from niwaki.trace.decisions import Decision, Decisions
from niwaki.trace.graph import Graph, Run
from niwaki.trace.hollow import Hollow
from niwaki.trace.inventory import Inventory
from niwaki.trace.modes import ModeWatch
from niwaki.trace.numbers import current_trace
from niwaki.trace.preserve import Snapshot, preserved, restored
from niwaki.trace.pretend import NeedsValue, Pretence
from niwaki.trace.recorder import Recorder
from niwaki.trace.refusals import check_inputs, does_not_run
from niwaki.trace.structures import ExampleCall, tensors_in


def example_calls(example_inputs: Any) -> tuple[ExampleCall, ...]:
    """Example inputs as (positional, keyword) pairs: a tensor or tuple is positional, a dict keywords, a list of
    these several calls."""
    check_inputs(example_inputs)
    if isinstance(example_inputs, list):
        if not example_inputs:
            raise TraceError("The list of example inputs is empty. Give at least one call that the model accepts.")
        return tuple(call for item in example_inputs for call in example_calls(item))
    if isinstance(example_inputs, Mapping):
        return (((), dict(example_inputs)),)
    if isinstance(example_inputs, tuple):
        return ((example_inputs, {}),)
    return (((example_inputs,), {}),)


@run_eagerly
def trace(
    model: torch.nn.Module,
    calls: Sequence[ExampleCall],
    modes: Sequence[bool] = (False, True),
    required: bool = False,
    failing: bool = False,
    decided: Sequence[Decision] = (),
    arithmetic: bool = False,
    every: bool = False,
) -> Graph:
    """Run ``model`` on every call in every mode (False: eval, True: train) and record what happens.

    ``decided``: what the data of another run decided; the first run decides the same and takes the same path.
    ``arithmetic``: compute all numbers, though only those that decide something have to be (`hollow`).
    ``every``: make every run, those in train mode too where the ones in eval mode tell all about them (`modes`).

    The model is left as it was. A run in train mode that fails is recorded with its error, unless it is ``required``;
    one in eval mode raises. ``failing``: whatever fails is recorded, as far as it went.

    Raises:
        TraceError: the model does not run in eval mode with these inputs.
    """
    left_alone: frozenset[int] = frozenset()
    while True:
        inventory = Inventory.of(model)
        pretence = Pretence([*tensors_in(list(calls)), *inventory.tensors])
        hollow = None if pretence.active or decided or arithmetic else Hollow()
        with preserved(model) as original, torch.inference_mode(False):
            if pretence.active:
                pretence.swap(model)
                inventory = Inventory.of(model)
            recorder = Recorder(inventory, pretence, hollow)
            recorder.decisions = Decisions(decided)
            try:
                with _current(recorder):
                    tracking = Tracking(inventory, left_alone)
                    tracked = Snapshot(model, None if pretence.active else original)
                    runs, unfit = _runs(recorder, inventory, calls, modes, required, failing, tracking, tracked, every)
            except _NeedsArithmetic:
                arithmetic = True
                continue
        if not unfit:
            overlooked = tuple(sorted(recorder.overlooked))
            return Graph(tuple(recorder.values), tuple(runs), recorder.contents, overlooked, recorder.filled)
        left_alone |= unfit


def _runs(
    recorder: Recorder,
    inventory: Inventory,
    calls: Sequence[ExampleCall],
    modes: Sequence[bool],
    required: bool,
    failing: bool,
    tracking: Tracking,
    tracked: Snapshot,
    every: bool,
) -> tuple[list[Run], frozenset[int]]:
    """The runs, each of the model as it was ``tracked``, or the objects among the attributes that have to be left alone
    in another attempt."""
    runs: list[Run] = []
    watch = ModeWatch(module for _, module in inventory.modules)
    for training, call in itertools.product(modes, calls):
        if training and runs and watch.alike and not recorder.tangled and not every:
            return [replace(run, both=True) for run in runs], frozenset()
        with restored(tracked):
            for _, module in inventory.modules:
                if module.training is not training:
                    module.training = training
            with watch.watching():
                run = recorder.run(inventory.modules[0][1], call, training)
            if recorder.hollow is not None and (run.error is not None or recorder.hollow.looked):
                raise _NeedsArithmetic
            needs = isinstance(run.error, NeedsValue)
            unfit = tracking.unfit(failed=run.error is not None and not (training or required or needs))
        if unfit:
            return runs, unfit
        if run.error is not None and (not training or required) and not failing:
            number = len(run.nodes) if run.inside else max(len(run.nodes) - 1, 0)
            if needs:
                raise TraceError(f"The model cannot be analysed on the meta device: {run.error}", number)
            raise TraceError(does_not_run(inventory.modules[0][1], calls, call, run.error), number) from run.error
        runs.append(run)
    return runs, frozenset()


@contextmanager
def _current(recorder: Recorder) -> Iterator[None]:
    token = current_trace.set(recorder)
    try:
        yield
    finally:
        current_trace.reset(token)


class _NeedsArithmetic(Exception):
    """A run without its arithmetic failed, or looked for what was not computed."""
