"""The step of the authors' HESSO (only-train-once 3) beside ours: the same model, the same gradients, the same units.

The package as a whole does not import beside torch 2.13, whose private modules its graph needs. Its optimizer needs no
graph, only parameter groups, so it is loaded by itself and given those of niwaki's search space.
"""

from __future__ import annotations

import importlib
import importlib.util
import statistics
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.optim import Optimizer

import niwaki

NAME = "only_train_once"
NETWORK = "ResNet-50"  # its units are whole rows of tensors, which need none of the package's own transforms
PHASES = ("OTO idle", "OTO scoring and choosing", "OTO fading", "OTO keeping zeros")
VARIANTS = {"AdamW(foreach=True)": "adamw", "SGD(momentum=0.9)": "sgd"}
LENGTH, LATER = 1000, 10**9


def available() -> bool:
    """Whether the package is installed."""
    return importlib.util.find_spec(NAME) is not None


def measured(
    space: niwaki.SearchSpace, bare: Optimizer, kind: str, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    """The ratio of each phase to the step of ``bare``, which is called ``kind`` and holds all parameters. The weights
    are put back."""
    weights = {name: parameter.detach().clone() for name, parameter in space.model.named_parameters()}
    periods = max(10, 2 * rounds)  # each can be scored once; half of them are then over when fading is timed
    with _loaded() as module:
        groups = _groups(space, module.TensorTransform)
        with redirect_stdout(StringIO()):  # it says what it is going to remove
            peer = module.HESSO(
                groups,
                variant=VARIANTS[kind],
                lr=1e-6,
                first_momentum=0.9,
                start_pruning_step=LATER,
                pruning_steps=periods * LENGTH,
                pruning_periods=periods,
            )
        found = {}
        for phase in PHASES:
            ratios = []
            for number in range(rounds + 1):
                _enter(peer, phase, number)
                alone = _timed(clock, bare)
                ratio = _timed(clock, peer) / alone
                if number:  # the first warms up
                    ratios.append(ratio)
            found[phase] = statistics.median(ratios)
        assert peer.curr_num_zero_groups == peer.target_num_redundant_groups  # it did remove what it was asked for
    with torch.no_grad():
        for name, parameter in space.model.named_parameters():
            parameter.copy_(weights[name])
    return found


def _enter(peer: Any, phase: str, period: int) -> None:
    """See that the next step is one of ``phase``."""
    if phase == "OTO idle":
        return
    peer.start_pruning_step = 0
    if phase == "OTO scoring and choosing":
        peer.num_steps = period * LENGTH
    elif phase == "OTO fading":
        peer.num_steps = (peer.curr_pruning_period - 1) * LENGTH + LENGTH // 2
    else:
        while not peer.reach_target_group_sparsity():
            peer.num_steps = (peer.curr_pruning_period - 1) * LENGTH + LENGTH - 2  # the period's last step is next
            peer.step()
            if not peer.reach_target_group_sparsity():
                peer.num_steps = peer.curr_pruning_period * LENGTH
                peer.step()
        peer.num_steps = peer.pruning_steps + LENGTH // 2


def _timed(clock: Callable[[], float], optimizer: Any) -> float:
    begin = clock()
    optimizer.step()
    return clock() - begin


@contextmanager
def _loaded() -> Iterator[Any]:
    """The module of its optimizer, without the package's ``__init__``; what it sends to CUDA stays where it is."""
    spec = importlib.util.find_spec(NAME)
    assert spec is not None and spec.submodule_search_locations is not None
    package = ModuleType(NAME)
    package.__path__ = list(spec.submodule_search_locations)

    def stay(self: Tensor) -> Tensor:
        return self

    with patch.dict(sys.modules, {NAME: package}), patch.object(torch.Tensor, "cuda", stay):
        yield importlib.import_module(f"{NAME}.optimizer.hesso")


def _groups(space: niwaki.SearchSpace, transform: Any) -> list[dict[str, Any]]:
    """The units of ``space`` as its parameter groups, and one group of everything else."""
    left = dict(space.model.named_parameters())
    groups = []
    for group in space.groups:
        names = sorted({part.tensor for part in group.slices if part.role.zeroed_by_method and part.parameter})
        assert all(left[name].shape[0] == group.units for name in names)
        held = {name: left.pop(name) for name in names}
        groups.append(_group(group.name, held, group.units, transform.BASIC, True))
    groups.append(_group("others", left, 1, transform.NO_PRUNE, False))
    return groups


def _group(name: str, held: dict[str, Any], units: int, transform: Any, prunable: bool) -> dict[str, Any]:
    return {
        "id": name,
        "num_groups": units,
        "is_prunable": prunable,
        "is_auxiliary": False,
        "auxiliary_ngs": [],
        "p_names": list(held),
        "params": list(held.values()),
        "p_transform": [transform] * len(held),
    }
