"""Tie similar groups so that they keep equal widths, as ordinary configuration files need."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Hashable
from fractions import Fraction

from niwaki.core.isomorphic import classes_of
from niwaki.core.names import named_modules
from niwaki.core.space import SearchSpace, Tie


def uniform(space: SearchSpace) -> SearchSpace:
    """Tie all groups of ``space`` that have one size and are isomorphic, or are the same part of modules of one class.
    Tied groups keep equally many units, each its own choice.

    All layers of a transformer then have the same number of heads and the same hidden width, whatever is chosen, in
    self-attention and cross-attention alike. The ties of ``space`` remain.

    >>> import niwaki, torch
    >>> class Net(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.a = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 4))
    ...         self.b = torch.nn.Sequential(torch.nn.Linear(4, 10), torch.nn.ReLU(), torch.nn.Linear(10, 4))
    ...     def forward(self, x):
    ...         return self.b(x + self.a(x)) - x
    >>> space = uniform(niwaki.search_space(Net(), torch.randn(1, 4)))
    >>> [(tie.groups, tie.steps, tie.most) for tie in space.ties]
    [((0, 1), (1, 1), 9)]
    """
    ties = list(space.ties)
    tied = {group for tie in ties for group in tie.groups}
    ties += [Tie((g,), (1,), space.groups[g].units - 1) for g in range(len(space.groups)) if g not in tied]
    kinds: dict[Hashable, list[tuple[int, int]]] = {}  # similar groups: (tie, step) of each
    classes = classes_of(space).tolist()
    parts = _parts(space)
    for number, tie in enumerate(ties):
        for group, step in zip(tie.groups, tie.steps, strict=True):
            for kind in (classes[group], *parts[group]):
                kinds.setdefault((kind, space.groups[group].units), []).append((number, step))
    found, made = set[int](), []
    for first in range(len(ties)):
        if first not in found:
            made.append(_joined(first, ties, list(kinds.values()), found))
    free = [tie for tie in made if len(tie.groups) > 1 or tie.steps != (1,) or tie.groups[0] in tied]
    return dataclasses.replace(space, ties=tuple(free))


def _parts(space: SearchSpace) -> list[set[Hashable]]:
    """For each group the modules that it runs through: the class of each, and the dimensions of its parameters that
    belong to the group. Only modules that contain layers and are not torch's count: a norm layer, even one that was
    written for this network, would tie all groups that it follows."""
    classes = {name: type(module) for name, module in named_modules(space.model)}
    found: list[set[Hashable]] = []
    for group in space.groups:
        inside: dict[str, set[tuple[str, int]]] = {}
        for piece in group.slices:
            layer = piece.tensor.rpartition(".")[0]
            module = layer.rpartition(".")[0]
            while module and classes[module].__module__.startswith("torch."):
                module = module.rpartition(".")[0]
            if module and piece.parameter:
                inside.setdefault(module, set()).add((piece.tensor.removeprefix(module), piece.dim))
        found.append({(classes[module], frozenset(pieces)) for module, pieces in inside.items()})
    return found


def _joined(first: int, ties: list[Tie], kinds: list[list[tuple[int, int]]], found: set[int]) -> Tie:
    """Join the tie ``first`` with all ties that follow from it; their numbers are added to ``found``.

    Where one unit of a tie's step corresponds to r of another's, one step of the former goes with r of the latter. If
    ties contradict one another, none of their units can be removed.
    """
    rate = {first: Fraction(1)}
    consistent, queue = True, [first]
    while queue:
        here = queue.pop()
        for kind in kinds:
            for mine in [step for number, step in kind if number == here]:
                for other, step in kind:
                    wanted = rate[here] * mine / step
                    if other not in rate:
                        rate[other] = wanted
                        queue.append(other)
                    consistent &= rate[other] == wanted
    found |= set(rate)
    scale = math.lcm(*(one.denominator for one in rate.values()))
    times = {number: int(one * scale) for number, one in rate.items()}
    divisor = math.gcd(*times.values())
    groups: list[int] = []
    steps: list[int] = []
    for number in sorted(rate):
        groups += ties[number].groups
        steps += [step * times[number] // divisor for step in ties[number].steps]
    most = min(ties[number].most * divisor // times[number] for number in rate) if consistent else 0
    return Tie(tuple(groups), tuple(steps), most)
