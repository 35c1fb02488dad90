"""Shows the examples of docstrings as code in the reference: an extension of griffe, which reads the docstrings."""

from __future__ import annotations

import re
from typing import Any

import griffe

# A paragraph that begins with a prompt and is not part of a section, which would be indented.
_BARE = re.compile(r"^>>> (?:.*\n?)+?(?=\n|\Z)", re.MULTILINE)


class Doctests(griffe.Extension):
    """Fences bare examples, and gives their sections the name that griffe knows."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is not None:
            text = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
            obj.docstring.value = _BARE.sub(lambda found: f"```pycon\n{found[0].rstrip()}\n```\n", text)
