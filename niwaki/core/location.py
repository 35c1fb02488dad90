"""Where in the user's source something happened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A line of Python source and the module (dotted path in the model) that was running it."""

    file: str
    line: int
    module: str = ""

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}"
        return f"{where} (in '{self.module}')" if self.module else where
