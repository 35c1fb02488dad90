"""The forms in which a search space can be drawn. Each is one file and one import line in `niwaki.report.draw`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from niwaki.report.drawing import Drawing

Render = Callable[[Drawing], str]


@dataclass(frozen=True, slots=True)
class Format:
    """How to draw, and what raises a `NiwakiError` where something for it is missing."""

    render: Render
    ready: Callable[[], None]


FORMATS: dict[str, Format] = {}


def form(suffix: str, ready: Callable[[], None] = lambda: None) -> Callable[[Render], Render]:
    """Register the decorated function for files whose names end so."""

    def register(render: Render) -> Render:
        FORMATS[suffix] = Format(render, ready)
        return render

    return register
