"""Trace a model: run it eagerly and record each operator below autograd."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch

from niwaki.errors import TraceError
from niwaki.trace.attributes import Tracking
from niwaki.trace.eager import run_eagerly
from niwaki.trace.extent import EVERYTHING, Extent, Place
from niwaki.trace.fake import FakeTensors, NeedsValue
from niwaki.trace.functions import NamedVariables
from niwaki.trace.graph import Graph, Run
from niwaki.trace.inventory import Inventory
from niwaki.trace.model_state import ModelState, preserved, restored
from niwaki.trace.modes import ModeWatch
from niwaki.trace.outside import preserved_outside
from niwaki.trace.powers import roots_followed
from niwaki.trace.recorder import Recorder
from niwaki.trace.refusals import check_inputs, does_not_run
from niwaki.trace.replay import Decision
from niwaki.trace.shape_only import Forms, Hollow
from niwaki.trace.structures import ExampleCall, others_in, tensors_in
from niwaki.trace.tracked import current_trace, root_of


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
    extent: Extent = EVERYTHING,
) -> Graph:
    """Run ``model`` on every call in every mode (False: eval, True: train) and record what happens.

    ``decided``: decisions of another run that depended on data; the first run repeats them and takes the same path.
    ``arithmetic``: compute all numbers, not only those that decisions depend on (`shape_only`). ``every``: make every
    run, those in train mode too where a run in eval mode stands for them (`modes`). ``extent``: the numbers that are
    tracked.

    The model is restored. A failing run in train mode is recorded with its error, unless it is ``required``; one in
    eval mode raises. ``failing``: every failing run is recorded up to its error.

    Raises:
        TraceError: the model does not run in eval mode with these inputs.
    """
    with tracing(model, RunsToMake(calls, modes, required, failing, tuple(decided), every), arithmetic) as tracer:
        attempt = tracer.attempt(extent)
    if attempt.failure is not None:
        raise attempt.failure from attempt.graph.runs[-1].error
    return attempt.graph


@dataclass(frozen=True, slots=True)
class RunsToMake:
    """The runs to make of a model, as `trace` takes them."""

    calls: Sequence[ExampleCall]
    modes: Sequence[bool] = (False, True)
    required: bool = False
    failing: bool = False
    decided: tuple[Decision, ...] = ()
    every: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Attempt:
    """The recorded runs, up to the first forbidden failure, and the places of tracked numbers. ``kept``: tensors that
    were not computed although something outside of the model holds them."""

    graph: Graph
    failure: TraceError | None
    places: tuple[Place, ...]
    kept: tuple[torch.Tensor, ...] = ()


@contextmanager
def tracing(model: torch.nn.Module, runs: RunsToMake, arithmetic: bool = False) -> Iterator[Tracer]:
    """A tracer of ``model``, which is restored at the end of the block."""
    others = others_in(list(runs.calls))
    with (
        preserved(model, others) as original,
        preserved_outside(model.modules()) as named,
        torch.inference_mode(False),
    ):
        yield Tracer(model, runs, arithmetic, original, named)


class Tracer:
    """Traces a model any number of times, each time from the same state: weights, buffers, attributes, random numbers,
    the variables that functions on it name.

    ``inventory``: the modules and tensors of the model. Created by `tracing`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        runs: RunsToMake,
        arithmetic: bool,
        original: ModelState,
        named: NamedVariables,
    ) -> None:
        inventory = Inventory.of(model)
        self._runs = runs
        self._pretence = FakeTensors([*tensors_in(list(runs.calls)), *inventory.tensors])
        self._before, self._named = original, named
        if self._pretence.active:
            self._pretence.swap(model)
            inventory = Inventory.of(model)
            self._before = ModelState(model, others=others_in(list(runs.calls)))
        self.inventory = inventory
        self._model = model
        self._arithmetic = arithmetic or self._pretence.active or bool(runs.decided)
        self._forms: Forms = {}
        self._runs_hollow = False  # at least one attempt has run without arithmetic
        self._left_alone: frozenset[int] = frozenset()
        self._changed = False  # the model may hold tracked numbers

    def attempt(self, extent: Extent, real: bool = False) -> Attempt:
        """Make all runs, with the numbers of ``extent`` tracked. ``real``: compute all numbers, where the tensors have
        any."""
        while True:
            if self._changed:
                self._before.restore()
            hollow = None if real or self._arithmetic else Hollow(self._forms)
            recorder = Recorder(self.inventory, self._pretence, hollow, extent)
            recorder.repeat(self._runs.decided)
            with _current(recorder):
                self._changed = extent.attributes
                tracking = Tracking(self.inventory, replace(extent, objects=extent.objects | self._left_alone))
                state = ModelState(self._model, self._before) if tracking.places else self._before
                try:
                    runs, failure, unfit = self._made(recorder, tracking, state)
                except _NeedsArithmetic:
                    self._arithmetic = True
                    continue
            if not unfit:
                self._runs_hollow = hollow is not None and failure is None
                graph = Graph(
                    tuple(recorder.values),
                    tuple(runs),
                    recorder.contents,
                    tuple(sorted(recorder.overlooked)),
                    tuple(sorted(recorder.unexplained)),
                    recorder.filled,
                    tracked=frozenset(tracking.places),
                    asked=recorder.asked,
                )
                return Attempt(graph, failure, tuple(tracking.places), tuple(recorder.survivors()))
            self._left_alone |= unfit

    def _made(
        self, recorder: Recorder, tracking: Tracking, state: ModelState
    ) -> tuple[list[Run], TraceError | None, frozenset[int]]:
        """The runs, each of the model in that ``state``; the error of a failed run; the objects among the attributes
        that must not be copied in another attempt."""
        runs: list[Run] = []
        modules = self.inventory.modules
        watch = ModeWatch(module for _, module in modules)
        for training, call in itertools.product(self._runs.modes, self._runs.calls):
            if training and runs and watch.alike and not recorder.tangled and not self._runs.every:
                return [replace(run, both=True) for run in runs], None, frozenset()
            with restored(state, self._named):
                for _, module in modules:
                    if module.training is not training:
                        module.training = training
                with watch.watching():
                    run = recorder.run(modules[0][1], call, training)
                if recorder.hollow is not None and (
                    recorder.hollow.looked or (run.error is not None and not self._runs_hollow)
                ):
                    raise _NeedsArithmetic
                unfit = tracking.unfit()
            runs.append(run)
            must = (not training or self._runs.required) and not self._runs.failing
            failure = self._failure(run, run.error, call) if run.error is not None and must else None
            if unfit or failure is not None:
                return runs, failure, unfit
        return runs, None, frozenset()

    def _failure(self, run: Run, error: Exception, call: ExampleCall) -> TraceError:
        """The sentence for a run that has failed."""
        number = len(run.nodes) if run.inside else max(len(run.nodes) - 1, 0)
        if isinstance(error, NeedsValue):
            return TraceError(f"The model cannot be analysed on the meta device: {error}", number)
        return TraceError(does_not_run(self.inventory.modules[0][1], self._runs.calls, call, error), number)


@contextmanager
def _current(recorder: Recorder) -> Iterator[None]:
    token = current_trace.set(recorder)
    try:
        with roots_followed(root_of):
            yield
    finally:
        current_trace.reset(token)


class _NeedsArithmetic(Exception):
    """A run without arithmetic failed, or read a value that was not computed."""
