"""Draw a search space into a file."""

from __future__ import annotations

from pathlib import Path

from niwaki.core.space import SearchSpace
from niwaki.errors import NiwakiError
from niwaki.io.atomic import write_atomically
from niwaki.report import dot, page  # noqa: F401 (they register themselves)
from niwaki.report.drawing import FORMATS, drawing


def check_drawable(path: Path) -> None:
    """Raise `NiwakiError` if a drawing could not be written, before the analysis starts."""
    if path.suffix not in FORMATS:
        raise NiwakiError(f"{str(path)!r} is not a name for a drawing. Let it end in {' or '.join(sorted(FORMATS))}.")
    FORMATS[path.suffix].ready()
    if path.is_dir() or not path.parent.is_dir():
        what = "is a directory" if path.is_dir() else f"lies in {str(path.parent)!r}, which is not a directory"
        raise NiwakiError(f"The drawing {str(path)!r} {what}. Name a file in a directory that exists.")


def draw(space: SearchSpace, path: Path, title: str) -> None:
    """Write a drawing of the modules and groups of ``space``, in the format of the file name's ending.

    Raises:
        NiwakiError: it cannot be drawn in this format, or not written there.
    """
    check_drawable(path)
    write_atomically(path, FORMATS[path.suffix].render(drawing(space, title)).encode())
