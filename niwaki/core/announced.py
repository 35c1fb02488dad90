"""Packages that register something when they are imported: announced when niwaki is, imported with the first question.

So `import niwaki` costs nothing, and what they register is there whichever part of niwaki asks. Needs no torch.
"""

from __future__ import annotations

import importlib

_ANNOUNCED: dict[str, None] = {}  # names that wait, in their order


def announce(package: str) -> None:
    """Import ``package``, such as ``niwaki.huggingface``, before integrations are asked for the first time."""
    _ANNOUNCED[package] = None


def import_announced() -> None:
    """Import the packages that wait.

    >>> import sys
    >>> import_announced()
    >>> "niwaki.huggingface" in sys.modules
    True
    """
    while _ANNOUNCED:
        importlib.import_module(_ANNOUNCED.popitem()[0])
