"""A search space drawn into a file."""

from __future__ import annotations

from pathlib import Path

from niwaki.core.space import SearchSpace
from niwaki.errors import NiwakiError
from niwaki.io.atomic import write_atomically
from niwaki.report import dot, page  # noqa: F401 (they register themselves)
from niwaki.report.drawing import FORMATS, drawing


def check_drawable(path: Path) -> None:
    """Raise `NiwakiError` where a drawing could not be written, before the work that leads to it is done."""
    if path.suffix not in FORMATS:
        raise NiwakiError(f"{str(path)!r} is not a name for a drawing. Let it end in {' or '.join(sorted(FORMATS))}.")
    FORMATS[path.suffix].ready()
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else f"lies in {str(path.parent)!r}, which is not a directory"
        raise NiwakiError(f"The drawing {str(path)!r} {what}. Name a file in a directory that exists.")


def draw(space: SearchSpace, path: Path, title: str) -> None:
    """Write a drawing of the modules and groups of ``space``; its form follows from the end of the name.

    Raises:
        NiwakiError: it cannot be drawn in this form, or there.
    """
    check_drawable(path)
    write_atomically(path, FORMATS[path.suffix].render(drawing(space, title)).encode())
