"""Where in the user's source something happened."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Location:
    """A line of Python source and the module (dotted path in the model) that was running it.

    ``line`` is 0 where no line of the user's was involved; ``file`` is then the kind of model.
    """

    file: str
    line: int
    module: str = ""

    def __str__(self) -> str:
        if not self.line:
            return f"'{self.module}'" if self.module else self.file
        where = f"{self.file}:{self.line}"
        return f"{where} (in '{self.module}')" if self.module else where
