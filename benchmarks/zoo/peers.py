"""Torch-Pruning on the same task: analyse, remove half of the channels, run forward and backward, compare.

The task, and what counts as exact: the outputs of the pruned network are within 1e-4 of the largest output of the dense
one whose removed parameters are zero. Random weights, float32, one thread; the layers that make the output stay.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.entries import Entry
from benchmarks.zoo.worker import Recorder, Stopped
from niwaki.testing.models import randomised
from niwaki.trace.structures import tensors_in
from niwaki.trace.tracer import example_calls
from niwaki.verify import difference

_EXACT = 1e-4


def warm_up() -> None:
    """What it loads on its first analysis is not the model's; before the processes part."""
    _library().DependencyGraph().build_dependency(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), torch.randn(1, 4))


def _library() -> Any:
    import torch_pruning

    return torch_pruning


def torch_pruning(entry: Entry, path: Path) -> None:
    """Fill the row of one model; never raises. ``verdict``: exact, inexact, unpruned, or fails with the stage."""
    recorder = Recorder(path, {})
    try:
        _try(entry, recorder)
    except Stopped:
        recorder.note(verdict=f"fails({recorder.row['stage']})")


def _try(entry: Entry, recorder: Recorder) -> None:
    with recorder.stage("build"):
        peer = _library()
        torch.manual_seed(0)
        model, inputs = entry.build()
        model = randomised(model.eval())
        args, kwargs = example_calls(inputs)[0]
        given: Any = kwargs if kwargs and not args else args
    with recorder.stage("analyse"):
        twin = copy.deepcopy(model)
        start, cpu = time.perf_counter(), time.process_time()
        peer.DependencyGraph().build_dependency(twin, example_inputs=given, output_transform=_summed)
        recorder.note(build_s=time.perf_counter() - start, build_cpu_s=time.process_time() - cpu)
    with recorder.stage("prune"):
        small = copy.deepcopy(model)
        pruner = peer.pruner.MetaPruner(
            small,
            example_inputs=given,
            importance=peer.importance.MagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=_last_layers(small, given),
            output_transform=_summed,
        )
        before = sum(parameter.numel() for parameter in small.parameters())
        zero = copy.deepcopy(model)
        names = {module: name for name, module in small.named_modules()}
        roots = {id(parameter): name for name, parameter in small.named_parameters()}
        for group in pruner.step(interactive=True):
            _mask(group, names, roots, zero, peer)
            group.prune()
        recorder.note(removed=1 - sum(parameter.numel() for parameter in small.parameters()) / before)
    with recorder.stage("forward"):
        ours, reference = _run(small, args, kwargs), _run(zero, args, kwargs)
        deviation = difference(ours, reference)
        recorder.note(deviation=deviation if deviation < float("inf") else 1e30)
    with recorder.stage("backward"):
        small.zero_grad()
        terms = [out.sum() for out in tensors_in(small(*args, **kwargs)) if out.is_floating_point()]
        torch.stack(terms).sum().backward()
    exact = recorder.row["deviation"] <= _EXACT
    unpruned = recorder.row["removed"] <= 0
    recorder.note(stage="done", verdict="unpruned" if unpruned else "exact" if exact else "inexact")


def _run(model: nn.Module, args: Any, kwargs: Any) -> list[Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        return [out for out in tensors_in(model(*args, **kwargs)) if out.is_floating_point()]


def _summed(output: Any) -> Any:
    """Torch-Pruning starts from gradient functions: whatever the model returns, all floating-point tensors of it."""
    return [out for out in tensors_in(output) if out.is_floating_point()]


def _last_layers(model: nn.Module, given: Any) -> list[nn.Module]:
    """The layers whose outputs are outputs of the model: their width must stay."""
    made: dict[int, nn.Module] = {}

    def note(module: nn.Module, _: Any, result: Any) -> None:
        for tensor in tensors_in(result):
            made.setdefault(tensor.data_ptr(), module)

    leaves = [module for module in model.modules() if not list(module.children()) and list(module.parameters())]
    handles = [module.register_forward_hook(note) for module in leaves]
    kept: list[Tensor] = []
    handles += [
        module.register_forward_hook(lambda _, __, result: kept.extend(tensors_in(result))) for module in leaves
    ]
    with torch.no_grad():
        result = model(**given) if isinstance(given, dict) else model(*given)
    for handle in handles:
        handle.remove()
    found = [made[out.data_ptr()] for out in tensors_in(result) if out.data_ptr() in made]
    last = [module for module in leaves if isinstance(module, (nn.Linear, nn.Conv2d, nn.Conv3d))][-1:]
    return list(dict.fromkeys(found or last))


def _mask(group: Any, names: dict[nn.Module, str], roots: dict[int, str], zero: nn.Module, peer: Any) -> None:
    """Zero in the dense copy what the group is about to remove from the small one."""
    modules = dict(zero.named_modules())
    parameters = dict(zero.named_parameters())
    with torch.no_grad():
        for dependency, positions in group:
            layer, how = dependency.target.module, dependency.handler
            if isinstance(layer, nn.Parameter):
                dim = dependency.target.pruning_dim
                entries = [(parameters[roots[id(layer)]], dim if dim is not None and dim >= 0 else layer.ndim - 1)]
            elif layer in names:
                entries = list(_slices(modules[names[layer]], how, peer))
            else:
                continue
            for parameter, dim in entries:
                parameter.index_fill_(dim, torch.as_tensor(positions, dtype=torch.long), 0)


def _slices(layer: nn.Module, how: Any, peer: Any) -> Iterator[tuple[Tensor, int]]:
    """Parameters of a layer, with the dimension that a pruning function of Torch-Pruning shortens."""
    into = "in_channels" in how.__name__
    for parameter in layer.parameters(recurse=False):
        if isinstance(layer, nn.modules.conv._ConvTransposeNd) and parameter.ndim > 1:
            yield parameter, 0 if into else 1
        elif isinstance(layer, nn.Embedding):
            yield parameter, 1
        elif parameter.ndim > 1 and not isinstance(layer, (nn.LayerNorm, nn.GroupNorm)):
            yield parameter, 1 if into and getattr(layer, "groups", 1) == 1 else 0
        elif not into or isinstance(layer, (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)):
            yield parameter, parameter.ndim - 1
