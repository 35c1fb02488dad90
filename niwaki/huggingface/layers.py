"""Configurations of networks with fewer layers: numbers that count layers, and lists with an entry for each.

A configuration does not say which list of modules a number counts. So each number that could is tried: a model that is
built from it must have as many layers as the cut one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from niwaki.core.edits import EraseModules
from niwaki.core.names import named_modules
from niwaki.core.plan import Plan

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Stack:
    """A list of layers, by its path: of ``before`` entries those with the numbers ``gone`` have left."""

    path: str
    before: int
    gone: tuple[int, ...]

    @property
    def left(self) -> int:
        """The number of entries that are left."""
        return self.before - len(self.gone)


def shortened(plan: Plan, done: Plan | None, prefix: str) -> list[Stack]:
    """The lists of layers below ``prefix`` that ``plan`` has shortened beyond what ``done`` did, by their paths there.
    Both plans are for the dense network."""
    now, before = (_entries(one) for one in (plan, done))
    found = []
    for path, gone in now.items():
        if path.startswith(prefix) and gone != before.get(path, set()):
            dense = len({name[len(path) + 1 :].split(".")[0] for name in plan.dense if name.startswith(f"{path}.")})
            there = [place for place in range(dense) if place not in before.get(path, set())]
            places = tuple(index for index, place in enumerate(there) if place in gone)
            found.append(Stack(path.removeprefix(prefix), len(there), places))
    return found


def _entries(plan: Plan | None) -> dict[str, set[int]]:
    found: dict[str, set[int]] = {}
    for edit in () if plan is None else plan.edits_of(EraseModules):
        for entry in edit.entries:
            path, _, key = entry.rpartition(".")
            if key.isdecimal():
                found.setdefault(path, set()).add(int(key))
    return found


def count_anew(model: PreTrainedModel, stacks: Sequence[Stack]) -> None:
    """Give ``model``, and all in it that have a configuration, configurations with the numbers of layers that it has.
    Where none builds a model with that many, its configuration stays as it is."""
    config = model.config
    for number, stack in enumerate(stacks):
        found = _counted(model, config, stack, {other.path for other in stacks[number + 1 :]})
        if found is None:
            return
        config = found
    built = dict(named_modules(built_like(model, config)))
    for path, module in give_parts(model, config):
        own = module.__dict__.get("config")
        if own is not None and path in built and "config" in built[path].__dict__:
            module.__dict__["config"] = _as_in(own, built[path].__dict__["config"], stacks)


def give_parts(model: PreTrainedModel, config: Any) -> list[tuple[str, nn.Module]]:
    """Give the modules in ``model`` whose configurations are its own, or parts of it, those of ``config``. The others,
    by path."""
    old = parts_of(model.config)
    new = {id(part): other for part, other in zip(old, parts_of(config), strict=True)}
    others = []
    for path, module in named_modules(model):
        own = module.__dict__.get("config")
        if id(own) in new:
            module.__dict__["config"] = new[id(own)]
        else:
            others.append((path, module))
    return others


def _counted(model: PreTrainedModel, config: Any, stack: Stack, later: Collection[str]) -> Any:
    """The configuration in which one number, or several of one value, counts the layers of ``stack`` as it is now.
    ``later``: the paths of other lists that are not what the configuration says."""
    names = [
        (part, name)
        for part, holder in enumerate(parts_of(config))
        for name, value in vars(holder).items()
        if type(value) is int and value == stack.before
    ]
    trials = [[one] for one in sorted(names, key=lambda one: "layer" not in one[1])]
    for trial in [[], *trials, names]:
        with contextlib.suppress(Exception):  # a configuration may raise any error
            made = _with(config, trial, stack)
            if _fits(model, made, stack, later):
                return made
    return None


def _with(config: Any, names: Sequence[tuple[int, str]], stack: Stack) -> Any:
    """A copy of a configuration in which these numbers, as (part, name), are those of ``stack`` as it is now, and lists
    have entries for its layers."""
    made = copy.deepcopy(config)
    parts = parts_of(made)
    for part, name in names:
        setattr(parts[part], name, stack.left)
    for holder in parts if names else ():
        for name, value in list(vars(holder).items()):
            if isinstance(value, list) and len(value) == stack.before:
                setattr(holder, name, [item for place, item in enumerate(value) if place not in stack.gone])
    return made


def _fits(model: PreTrainedModel, config: Any, stack: Stack, later: Collection[str]) -> bool:
    """Whether a model that is built from ``config`` has as many layers there, and elsewhere what it had."""
    built = built_like(model, config)
    there = _lengths(dict(named_modules(built)))
    here = _lengths(dict(named_modules(model)))
    return there.get(stack.path) == stack.left and all(
        there.get(path) in (length, None) or path in later or path.startswith(f"{stack.path}.")
        for path, length in here.items()
    )


def _lengths(modules: Mapping[str, nn.Module]) -> dict[str, int]:
    return {path: len(module) for path, module in modules.items() if isinstance(module, nn.ModuleList)}


def built_like(model: PreTrainedModel, config: Any) -> PreTrainedModel:
    """A model of the class of ``model``, without values, from a copy of a configuration."""
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        return type(model)(copy.deepcopy(config))


def parts_of(config: Any) -> list[Any]:
    """A configuration and those inside of it."""
    from transformers.configuration_utils import PretrainedConfig

    inside = [value for value in vars(config).values() if isinstance(value, PretrainedConfig)]
    return [config, *(part for value in inside for part in parts_of(value))]


def _as_in(own: Any, built: Any, stacks: Sequence[Stack]) -> Any:
    """A copy of a configuration with the numbers of layers that another one has."""
    made = copy.deepcopy(own)
    for stack in stacks:
        for name, value in vars(own).items():
            if type(value) is int and value == stack.before and vars(built).get(name) == stack.left:
                setattr(made, name, stack.left)
            elif isinstance(value, list) and len(value) == stack.before:
                other = vars(built).get(name)
                if isinstance(other, list) and len(other) == stack.left:
                    setattr(made, name, copy.deepcopy(other))
    return made
