"""One model, from building it to the last comparison. Writes its row after every stage, so that one that is killed has
said how far it came."""

from __future__ import annotations

import ctypes
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import niwaki
from benchmarks.zoo.entries import Entry
from niwaki.core.precision import doubled
from niwaki.testing.models import random_plan, randomised
from niwaki.testing.rivals import GRADIENT_TOLERANCE, Rivals
from niwaki.trace.extent import NOTHING
from niwaki.trace.tracer import RunsToMake, example_calls, tracing
from niwaki.verify import TOLERANCE

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
            self.note(error=one_line(f"{type(cause).__name__}: {cause}"))
            raise Stopped from cause


def one_line(text: str) -> str:
    """The first 300 characters of an error."""
    return " ".join(text.split())[:300]


def examine(entry: Entry, path: Path, seeds: int, patience: float) -> None:
    """Fill the row of one model; never raises. After ``patience`` CPU seconds no further plan is begun."""
    recorder = Recorder(path, {"zoo": entry.zoo, "name": entry.name, "kind": entry.kind})
    try:
        _examine(entry, recorder, seeds, patience)
        recorder.note(stage="done")
    except Stopped:
        pass


def _examine(entry: Entry, recorder: Recorder, seeds: int, patience: float) -> None:
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
    with recorder.stage("analyse"):
        space = _analysed(model, inputs, recorder)
        recorder.note(
            coverage=space.coverage,
            units=space.num_units,
            groups=len(space.groups),
            notes=list(space.notes),
            pins=pins_by_reason(space),
        )
    _keep_memory()
    rng = np.random.default_rng(0)
    recorder.note(forward=0.0, backward=None, seeds=0)
    for seed in range(1 if entry.large else seeds):
        if seed and time.process_time() > patience:
            break
        plan = random_plan(space, rng)
        if not seed:
            _try_cut(model, inputs, space, plan, recorder)
        _try_plan(model, inputs, plan, recorder, consume=entry.large)
        recorder.note(seeds=seed + 1)


def _analysed(model: nn.Module, inputs: Any, recorder: Recorder) -> niwaki.SearchSpace:
    """The search space; its time, with and without the rehearsal, is in the row."""
    module = sys.modules[niwaki.search_space.__module__]
    rehearsals = []

    def rehearsed(*given: Any) -> list[str]:
        rehearsals.append(timed(lambda: rehearsal(*given)))
        return rehearsals[-1][2]  # type: ignore[no-any-return]

    rehearsal = module.dry_run
    with patch.object(module, "dry_run", rehearsed):
        wall, cpu, space = timed(lambda: niwaki.search_space(model, inputs))
    recorder.note(analysis_s=wall, analysis_cpu_s=cpu)
    recorder.note(solve_s=wall - rehearsals[0][0], solve_cpu_s=cpu - rehearsals[0][1])
    recorder.note(guard_cpu_s=timed(lambda: _untracked(model, inputs))[1])
    return space


def _untracked(model: nn.Module, inputs: Any) -> None:
    """The run that the analysis compares its own with, once more."""
    with tracing(model, RunsToMake(example_calls(inputs))) as tracer:
        tracer.attempt(NOTHING)


def _try_cut(model: nn.Module, inputs: Any, space: niwaki.SearchSpace, plan: niwaki.Plan, recorder: Recorder) -> None:
    """What the first cut removes, against what was predicted."""
    call = example_calls(inputs)[0]
    with recorder.stage("cut"):
        small = niwaki.cut(model, plan)
        actual, predicted = sum(p.numel() for p in small.parameters()), space.cost(plan)
        recorder.note(removed=1 - actual / max(1, recorder.row["params"]), params_right=predicted.params == actual)
    with recorder.stage("macs"):
        recorder.note(macs=space.cost().macs, macs_predicted=predicted.macs)
        recorder.note(macs_counted=macs(model, call), macs_counted_cut=macs(small, call))


def _try_plan(model: nn.Module, inputs: Any, plan: niwaki.Plan, recorder: Recorder, consume: bool) -> None:
    row, call = recorder.row, example_calls(inputs)[0]
    with recorder.stage("cut"):
        rivals = Rivals(model, plan, consume)
    with recorder.stage("forward"):
        found = rivals.outputs(call)
        recorder.note(forward=max(row["forward"], found.deviation), precision=str(found.precision).split(".")[-1])
        if found.noise:
            recorder.note(noise=found.noise)
        if not found.within(TOLERANCE.get(found.precision, 1e-2)):
            recorder.note(wrong=True)
            if not consume:
                with doubled():
                    recorder.note(diverges=niwaki.check(model, plan, inputs).diverges)
    with recorder.stage("backward"):
        gradients = rivals.gradients(call)
        if gradients is None:
            recorder.note(refusal=one_line(rivals.refusal))
            return
        recorder.note(backward=max(row["backward"] or 0.0, gradients.deviation))
        if gradients.noise:
            recorder.note(noise=max(row.get("noise", 0.0), gradients.noise))
        if not gradients.within(GRADIENT_TOLERANCE):
            recorder.note(wrong=True, diverges=f"gradient of {gradients.parameter}")


def _keep_memory() -> None:
    """Let freed memory be used again and not be given back: the comparison makes and drops copies of the model, and a
    page that is new costs more than what is computed in it. Only where the allocator is glibc's."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        for option, value in ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0)):
            library.mallopt(option, value)


_TRIM_THRESHOLD, _MMAP_MAX = -1, -4


def timed(what: Callable[[], Any]) -> tuple[float, float, Any]:
    """Wall seconds, CPU seconds, result."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = what()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def warm_up() -> None:
    """What Python and torch load on the first analysis is not the model's; before the processes part."""
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
