"""Configurations of networks with fewer experts: the number that counts them, and the copies of it on modules.

As with layers, a configuration does not say what a number counts. So each number that could is tried: a model that is
built from it must have routers, and whatever else changes with the number, as long as the cut one.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from niwaki.core.edits import EraseExperts
from niwaki.core.names import named_modules, state_of_model
from niwaki.core.plan import Plan
from niwaki.core.renaming import Renaming
from niwaki.erasing.expert_counts import numbers_of
from niwaki.huggingface.layers import built_like, give_parts, parts_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Routers:
    """Routers that had ``before`` experts each, and have ``left``; the names of their ``weights``."""

    weights: tuple[str, ...]
    before: int
    left: int


def with_fewer_experts(plan: Plan, done: Plan | None, prefix: str) -> list[Routers]:
    """The routers below ``prefix`` that ``plan`` takes experts from, beyond what ``done`` did, by their names there, if
    all that had as many keep as many. Both plans are for the dense network."""
    earlier = {} if done is None else {edit.weight: len(edit.kept) for edit in done.edits_of(EraseExperts)}
    names = Renaming.of(plan)
    found: dict[int, dict[str, int]] = {}
    for edit in plan.edits_of(EraseExperts):
        name = names.after(edit.weight)
        if name is not None and name.startswith(prefix):
            own = found.setdefault(earlier.get(edit.weight, edit.experts), {})
            own[name.removeprefix(prefix)] = len(edit.kept)
    return [
        Routers(tuple(left), before, next(iter(left.values())))
        for before, left in found.items()
        if len(set(left.values())) == 1 and before not in left.values()
    ]


def count_experts_anew(model: PreTrainedModel, fewer: Sequence[Routers]) -> None:
    """Give ``model``, and all in it that have a configuration, the numbers of experts that it has now; where a module
    around routers has a copy of such a number, that too. If no configuration builds these routers, as where routers of
    one number keep unequally many, all stays as it is."""
    for routers in fewer:
        found = _counted(model, routers)
        if found is None:
            continue
        config, *built = found
        give_parts(model, config)
        old, new = (numbers_of(one) for one in built)
        modules = dict(named_modules(model))
        for (path, name), value in numbers_of(model).items():
            around = any(not path or weight.startswith(f"{path}.") for weight in routers.weights)
            counts = value == old.get((path, name)) == routers.before and new.get((path, name)) == routers.left
            if around and counts:
                modules[path].__dict__[name] = routers.left


def _counted(model: PreTrainedModel, routers: Routers) -> tuple[Any, PreTrainedModel, PreTrainedModel] | None:
    """The configuration in which one number, or several of one value, says how many experts ``routers`` have now, and
    models that are built from it as it was and as it is."""
    names = [
        (part, name)
        for part, holder in enumerate(parts_of(model.config))
        for name, value in vars(holder).items()
        if type(value) is int and value == routers.before
    ]
    trials = [[one] for one in sorted(names, key=lambda one: "expert" not in one[1])]
    old = None
    for trial in [*trials, names]:
        with contextlib.suppress(Exception):  # a configuration may raise any error
            old = built_like(model, model.config) if old is None else old
            config = copy.deepcopy(model.config)
            for part, name in trial:
                setattr(parts_of(config)[part], name, routers.left)
            new = built_like(model, config)
            here, before, after = (state_of_model(one) for one in (model, old, new))
            if _fits(here, before, after, routers):
                return config, old, new
    return None


def _fits(here: Mapping[str, Tensor], old: Mapping[str, Tensor], new: Mapping[str, Tensor], routers: Routers) -> bool:
    """Whether the number changes ``routers``, and all that it changes is in the cut model as in the one built."""
    changed = {name for name, one in old.items() if name not in new or one.shape != new[name].shape}
    return changed.issuperset(routers.weights) and all(
        name not in here
        if name not in new
        else name in here
        and here[name].ndim == new[name].ndim
        and all(
            size == now
            for size, before, now in zip(here[name].shape, old[name].shape, new[name].shape, strict=True)
            if before != now
        )
        for name in changed
    )
