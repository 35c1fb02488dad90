"""Numbers on the modules around routers that may count their experts, though no example call reads them, such as one
for a loss that is only computed if it is asked for.

What such a number means no run shows. An integration may know, as from a configuration of which it is a copy; a note
names the others.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from torch import nn

from niwaki.core.names import named_modules
from niwaki.erasing.routers import Router
from niwaki.solve.reading import readers_of

_NAMED = 4
Place = tuple[str, str]  # the path of a module, and the name of its attribute


@dataclass(frozen=True, slots=True)
class ExpertCount:
    """The attribute at ``place``, of a module around ``router``, that is as many as it has experts, and which method
    reads it (``reader``)."""

    place: Place
    experts: int
    router: str
    reader: str

    def __str__(self) -> str:
        return f"{'.'.join(filter(None, self.place))} is {self.experts}, read by {self.reader}"


def counts_around(model: nn.Module, routers: Sequence[Router]) -> list[ExpertCount]:
    """The numbers on modules around ``routers`` that are as many as the experts of one of them, and do not change with
    them."""
    changed = {(path, name) for router in routers for path, name, _ in router.numbers}
    found: list[ExpertCount] = []
    for path, module in named_modules(model):
        inside = [one for one in routers if not path or one.weight.startswith(f"{path}.")]
        for name, value in module.__dict__.items():
            if type(value) is not int or (path, name) in changed:
                continue
            router = next((one for one in inside if one.experts == value), None)
            reader = None if router is None else readers_of(type(module), ()).get(name)
            if router is not None and reader is not None:
                method = f"{type(module).__qualname__}.{reader}"
                found.append(ExpertCount((path, name), value, router.weight, method))
    return found


def numbers_of(model: nn.Module) -> dict[Place, int]:
    """All whole numbers that modules hold."""
    return {
        (path, name): value
        for path, module in named_modules(model)
        for name, value in module.__dict__.items()
        if type(value) is int
    }


def note(counts: Sequence[ExpertCount], followed: Collection[Place], equal: bool) -> str | None:
    """What a user should know about ``counts``; None for nothing. ``followed``: those that an integration updates where
    all routers keep equally many experts, which ``equal`` says they do."""
    stale = [one for one in counts if one.place not in followed or not equal]
    if not stale:
        return None
    named = "; ".join(map(str, stale[:_NAMED]))
    rest = f"; and {len(stale) - _NAMED} more" if len(stale) > _NAMED else ""
    if all(one.place in followed for one in stale):
        what = "They follow a cut only if all routers keep equally many experts: layout='uniform' sees to that."
    else:
        what = (
            "No example call shows what they mean, so a cut does not change them. If they count experts, set them then."
        )
    return f"These numbers equal the number of experts of {stale[0].router!r}: {named}{rest}. {what}"
