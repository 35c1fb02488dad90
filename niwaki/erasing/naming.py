"""What structures are called: after the modules that they consist of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from niwaki.core.structures import Structure


def modules_of(path: str) -> list[str]:
    """A module and those around it, from outside in, without the model.

    >>> modules_of("layers.0.mlp")
    ['layers', 'layers.0', 'layers.0.mlp']
    """
    steps = path.split(".") if path else []
    return [".".join(steps[: end + 1]) for end in range(len(steps))]


def innermost(paths: Sequence[str]) -> str:
    """The innermost module that has all of ``paths``."""
    found: list[str] = []
    for steps in zip(*(path.split(".") for path in paths), strict=False):
        if len(set(steps)) > 1:
            break
        found.append(steps[0])
    return ".".join(found)


def from_to(paths: Sequence[str]) -> str:
    """The first and the last of some modules.

    >>> from_to(["edges.0", "edges.2"])
    'edges.0..2'
    """
    first, *_, last = paths
    outer = innermost([first, last])
    return f"{first}..{last.removeprefix(f'{outer}.')}"


def named_apart(found: Sequence[Structure]) -> tuple[Structure, ...]:
    """The structures with a number where several have one name, unless only one of these can be erased: that has it."""
    times = Counter(one.name for one in found)
    erasable = Counter(one.name for one in found if one.erasable)
    seen = Counter[str]()
    named = []
    for one in found:
        if times[one.name] > 1 and not (one.erasable and erasable[one.name] == 1):
            seen[one.name] += 1
            one = replace(one, name=f"{one.name}:{seen[one.name]}")
        named.append(one)
    return tuple(named)
