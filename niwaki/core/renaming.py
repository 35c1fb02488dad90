"""The names of tensors and modules after a cut that takes modules away and numbers the others anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


@final
class Renaming:
    """Names before and after a cut. ``moved``: the new name in its module of what has one, by its path before; None if
    it is gone.

    >>> names = Renaming({"layers.1": None, "layers.2": "1"})
    >>> names.after("layers.2.weight"), names.after("layers.1.bias"), names.before("layers.1.bias")
    ('layers.1.weight', None, 'layers.2.bias')
    """

    __slots__ = ("_back", "_moved")

    def __init__(self, moved: Mapping[str, str | None]) -> None:
        self._moved = moved
        self._back = {(path.rpartition(".")[0], new): path for path, new in moved.items() if new is not None}

    @classmethod
    def of(cls, plan: Plan) -> Renaming:
        """The names before and after ``plan``."""
        return cls({path: new for edit in plan.module_edits for path, new in edit.moved.items()})

    def __bool__(self) -> bool:
        return bool(self._moved)

    @property
    def moves(self) -> bool:
        """Whether something has another name, and is not just gone."""
        return bool(self._back)

    def after(self, name: str) -> str | None:
        """The name of what had this name; None if it is gone."""
        made: list[str] = []
        path = ""
        for part in name.split("."):
            path = f"{path}.{part}" if path else part
            new = self._moved.get(path, part)
            if new is None:
                return None
            made.append(new)
        return ".".join(made)

    def before(self, name: str) -> str:
        """The name that had what has this name now."""
        path = ""
        for part in name.split("."):
            path = self._back.get((path, part)) or (f"{path}.{part}" if path else part)
        return path
