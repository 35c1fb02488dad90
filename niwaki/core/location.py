"""Locations in the user's source."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from os.path import basename


@dataclass(frozen=True, slots=True)
class Location:
    """A line of Python source and the module (dotted path in the model) that was running it.

    ``line`` is 0 if no line of the user's was involved; ``file`` is then the class of the model. ``node``: the node of
    its graph that ran, of an exported program.
    """

    file: str
    line: int
    module: str = ""
    node: str = field(default="", compare=False)

    @property
    def brief(self) -> str:
        """The line without the folders of its file."""
        return f"{basename(self.file)}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        if not self.line:
            return f"'{self.module}'" if self.module else self.file
        where = f"{self.file}:{self.line}"
        return f"{where} (in '{self.module}')" if self.module else where


# The source line of the running call of an exported program: a line of the model that it was exported from.
running_at: ContextVar[Location | None] = ContextVar("running_at", default=None)
