"""One model, from building it to the last comparison. Writes its row after every stage, so that one that is killed has
said how far it came."""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import niwaki
from benchmarks.zoo.entries import Entry
from niwaki.precision import doubled
from niwaki.testing.models import (
    GRADIENT_TOLERANCE,
    TOLERANCE,
    gradient_deviation,
    output_deviation,
    random_plan,
    randomised,
)
from niwaki.trace.tracer import example_calls

Row = dict[str, Any]


class Stopped(Exception):
    """A stage failed, and the row says so."""


class Recorder:
    """The row of a model, on disk after every stage."""

    def __init__(self, path: Path, row: Row) -> None:
        self._path, self.row = path, row

    def note(self, **values: Any) -> None:
        """Add to the row."""
        self.row.update(values)
        part = self._path.with_suffix(".part")
        part.write_text(json.dumps(self.row))
        os.replace(part, self._path)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """What fails inside is noted as this stage's error."""
        self.note(stage=name)
        start = time.process_time()
        try:
            yield
            spent = self.row.setdefault("stages_cpu_s", {})
            spent[name] = spent.get(name, 0.0) + time.process_time() - start
        except Exception as cause:
            traceback.print_exc()
            self.note(error=one_line(cause))
            raise Stopped from cause


def one_line(cause: BaseException) -> str:
    """The kind and the first 300 characters of an error."""
    text = " ".join(str(cause).split())
    return f"{type(cause).__name__}: {text}"[:300]


def examine(entry: Entry, path: Path, seeds: int) -> None:
    """Fill the row of one model; never raises."""
    recorder = Recorder(path, {"zoo": entry.zoo, "name": entry.name, "kind": entry.kind})
    try:
        _examine(entry, recorder, seeds)
        recorder.note(stage="done")
    except Stopped:
        pass


def _examine(entry: Entry, recorder: Recorder, seeds: int) -> None:
    torch.manual_seed(0)
    with recorder.stage("build"):
        model, inputs = entry.build()
        model = randomised(model.eval())
        recorder.note(params=sum(p.numel() for p in model.parameters()))
    with recorder.stage("dense"):
        args, kwargs = example_calls(inputs)[0]
        with torch.no_grad():
            model(*args, **kwargs)
            recorder.note(forward_s=timed(lambda: model(*args, **kwargs))[0])
    _warm_up()
    with recorder.stage("analyse"):
        wall, cpu, space = timed(lambda: niwaki.search_space(model, inputs, rehearse=False))
        recorder.note(solve_s=wall, solve_cpu_s=cpu, solve_coverage=space.coverage)
        wall, cpu, space = timed(lambda: niwaki.search_space(model, inputs))
        recorder.note(
            analysis_s=wall,
            analysis_cpu_s=cpu,
            coverage=space.coverage,
            units=space.num_units,
            groups=len(space.groups),
            notes=list(space.notes),
            pins=pins_by_reason(space),
        )
    rng = np.random.default_rng(0)
    recorder.note(forward=0.0, backward=None, seeds=0)
    for seed in range(seeds):
        _try_plan(model, inputs, space, rng, recorder, first=seed == 0)
        recorder.note(seeds=seed + 1)


def _try_plan(
    model: nn.Module, inputs: Any, space: niwaki.SearchSpace, rng: np.random.Generator, recorder: Recorder, first: bool
) -> None:
    row, call = recorder.row, example_calls(inputs)[0]
    with recorder.stage("plan"):
        plan = random_plan(space, rng)
    with recorder.stage("cut"):
        small = niwaki.cut(model, plan)
        actual = sum(p.numel() for p in small.parameters())
        predicted = space.cost(plan)
        recorder.note(removed=1 - actual / max(1, row["params"]), params_right=predicted.params == actual)
    with recorder.stage("forward"):
        found = output_deviation(model, plan, call)
        recorder.note(forward=max(row["forward"], found.deviation), precision=str(found.precision).split(".")[-1])
        if found.deviation > TOLERANCE.get(found.precision, 1e-2):
            with doubled():
                recorder.note(wrong=True, diverges=niwaki.check(model, plan, inputs).diverges)
    if first:
        with recorder.stage("macs"):
            dense_macs, small_macs = macs(model, call), macs(small, call)
            recorder.note(macs=space.cost().macs, macs_predicted=predicted.macs)
            recorder.note(macs_counted=dense_macs, macs_counted_cut=small_macs)
    del small
    with recorder.stage("backward"):
        gradients = gradient_deviation(model, plan, call)
        if gradients is not None:
            recorder.note(backward=max(row["backward"] or 0.0, gradients.deviation))
            if gradients.noise:
                recorder.note(noise=gradients.noise)
            if not gradients.within(GRADIENT_TOLERANCE):
                recorder.note(wrong=True, diverges=f"gradient of {gradients.parameter}")


def timed(what: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, CPU seconds, result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = what()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def _warm_up() -> None:
    """Whatever Python and torch load on the first analysis of a process is not the model's."""
    niwaki.search_space(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(1, 4))


def pins_by_reason(space: niwaki.SearchSpace) -> list[Row]:
    """Reasons, and for each the entries of parameters that it keeps from being removed through the pinned dimension."""
    sizes = dict(space.model.named_parameters())
    found: dict[str, Row] = {}
    for pin in space.pins:
        parameter = sizes.get(pin.parameter)
        entries = pin.count * parameter.numel() // max(1, parameter.shape[pin.dim]) if parameter is not None else 0
        row = found.setdefault(
            pin.reason, {"reason": pin.reason, "entries": 0, "pins": 0, "where": str(pin.location or "")}
        )
        row["entries"] += entries
        row["pins"] += 1
    return sorted(found.values(), key=lambda row: -row["entries"])


def macs(model: nn.Module, call: Any) -> int:
    """Multiply-accumulates as torch's own counter sees them, attention as its plain definition."""
    counter = FlopCounterMode(display=False)
    args, kwargs = call
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        torch.backends.mha.set_fastpath_enabled(False)  # type: ignore[no-untyped-call]  # it is not counted
        for parameter in trained:  # the counter stumbles over parameters that a module is called with
            parameter.requires_grad_(False)
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
            model.eval()(*args, **kwargs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)  # type: ignore[no-untyped-call]
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops() // 2)
