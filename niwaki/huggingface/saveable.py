"""Find out, before a training, whether the plans of a search space can be saved as ordinary checkpoints."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from niwaki.core.isomorphic import classes_of
from niwaki.core.names import module_at
from niwaki.core.space import BoolArray, Group, SearchSpace, Tie, check_space
from niwaki.huggingface.configuration import Unsaid, built_from, described, family_of
from niwaki.huggingface.following import is_pretrained
from niwaki.selection import select, uniform
from niwaki.selection.levels import failing
from niwaki.surgery.cut import cut_empty, duplicate

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class CanSave:
    """The answer of `can_save`, true if every plan can be saved.

    ``reasons``: sizes that cannot be expressed in a configuration, one sentence each. ``ignored``: patterns for the
    argument of this name of `niwaki.search_space`, which keep these sizes. ``layout``: the layout that is needed.
    """

    kind: str
    reasons: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    layout: str | None = None

    def __bool__(self) -> bool:
        return not self.reasons

    def __str__(self) -> str:
        if not self.reasons:
            return f"All plans of this search space can be saved as an ordinary {self.kind!r} checkpoint."
        lines = [f"Some plans of this search space cannot be saved as an ordinary {self.kind!r} checkpoint:"]
        lines += [f"  {reason}" for reason in self.reasons]
        options = [f"layout={self.layout!r}"] * (self.layout is not None)
        options += [f"ignored={list(self.ignored)!r}"] * bool(self.ignored)
        if options:
            lines.append(f"Pass {' and '.join(options)} to niwaki.search_space, or use niwaki.save and niwaki.load.")
        else:
            lines.append("Use niwaki.save and niwaki.load.")
        return "\n".join(lines)


def can_save(space: SearchSpace) -> CanSave:
    """Whether `save_pretrained` can save the network of every plan of ``space``; to be called before the training.

    Each kind of group is made smaller by its smallest step, on the meta device, and a model is built from the
    configuration with these sizes; at last half of all units are removed together. That takes a few times as long as
    building the model, and no memory for weights. Without ``layout="uniform"``, failures are tried again with that
    layout.

    Args:
        space: the search space of a model of transformers; best with ``layout="uniform"``.

    Raises:
        MethodError: ``space`` is not a search space.

    Example::

        space = niwaki.search_space(bert, {"input_ids": tokens}, layout="uniform") print(answer := can_save(space))  #
        names what a BERT configuration cannot express: fewer heads of the same size space = niwaki.search_space(bert,
        {"input_ids": tokens}, ignored=answer.ignored, layout="uniform") assert can_save(space)
    """
    check_space(space)
    model = module_at(space.model, "")
    if not is_pretrained(model):
        return CanSave(type(model).__qualname__, ("The model is not one of transformers.",))
    kind = str(model.config.model_type)
    try:
        family_of(model)
    except Unsaid as cause:
        return CanSave(kind, (f"{cause.why}.",))
    trials = _Trials(space)
    reasons: list[str] = []
    bad: list[Group] = []
    evened = uniform(space)
    layout = None
    for tie in _kinds(space):
        why = trials.why(tie)
        if why is None:
            continue
        even = next(one for one in _all(evened) if set(tie.groups) <= set(one.groups))
        if evened.ties != space.ties and None in (trials.why(even), trials.why(even, (even.most + 1) // 2)):
            layout = "uniform"
        else:
            bad += [space.groups[number] for number in even.groups]
            reasons.append(f"{_names(space, even)}: {why}.")
    if layout is not None:
        reasons.append("Layers could become unequal, and a configuration says one number for all, and not any number.")
    elif not reasons and (why := trials.half()) is not None:
        reasons.append(f"Everything together: {why}.")
    return CanSave(kind, tuple(reasons), _patterns(space, bad), layout)


class _Trials:
    """Cuts of a model without weights."""

    def __init__(self, space: SearchSpace) -> None:
        self._space = space
        hollow: dict[int, object] = {
            id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
            for parameter in space.model.parameters()
        }
        self._model = duplicate(module_at(space.model, ""), hollow)

    def why(self, tie: Tie, least: int = 1) -> str | None:
        """The reason why no configuration has the sizes of the network in which ``tie`` has lost the ``least`` steps
        that can be built; None if one has, or if the tie cannot shrink alone."""
        for times in range(least, tie.most + 1):
            keep = np.ones(self._space.num_units, dtype=bool)
            for number, step in zip(tie.groups, tie.steps, strict=True):
                first = self._space.groups[number].first
                keep[first : first + times * step] = False
            if not failing(self._space, keep):
                return self._unsaid(keep)
        return None

    def half(self) -> str | None:
        """The same for the network with half of all units."""
        units = self._space.num_units
        keep = select(self._space, np.ones(units), {"units": float(max(units // 2, 1))})
        return None if failing(self._space, keep) else self._unsaid(keep)

    def _unsaid(self, keep: BoolArray) -> str | None:
        small: PreTrainedModel = cut_empty(self._model, self._space.plan(keep))  # type: ignore[assignment]
        try:
            with torch.random.fork_rng(devices=[]):
                built_from(small, *described(small, family_of(small)))
        except Unsaid as cause:
            return cause.why
        return None


def _all(space: SearchSpace) -> list[Tie]:
    """All groups or ties of groups whose units are removed together."""
    taken = {number for tie in space.ties for number in tie.groups}
    alone = [Tie((n,), (1,), group.units - 1) for n, group in enumerate(space.groups) if n not in taken]
    return [*space.ties, *alone]


def _kinds(space: SearchSpace) -> list[Tie]:
    """The first one of each kind."""
    classes = classes_of(space).tolist()
    kinds: dict[object, Tie] = {}
    for tie in _all(space):
        kinds.setdefault(tuple((classes[number], space.groups[number].units) for number in tie.groups), tie)
    return list(kinds.values())


def _names(space: SearchSpace, tie: Tie) -> str:
    return ", ".join(dict.fromkeys(_folded(space.groups[number].name) for number in tie.groups))


def _patterns(space: SearchSpace, groups: Sequence[Group]) -> tuple[str, ...]:
    """The fewest parameters that pin ``groups`` and no others, with a * for the numbers of layers if all layers are
    meant."""
    ranks = {shape.name: len(shape.shape) for shape in space.shapes}
    first = {group.first for group in groups}
    others = {piece.tensor for group in space.groups if group.first not in first for piece in group.slices}
    found: dict[str, None] = {}
    for group in groups:
        producing = [piece.tensor for piece in group.slices if piece.role.produces and piece.parameter]
        name = min(producing or [piece.tensor for piece in group.slices], key=lambda tensor: ranks[tensor])
        pattern = _folded(name)
        found[name if any(fnmatchcase(other, pattern) for other in others) else pattern] = None
    return tuple(found)


def _folded(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
