"""The stored records: one file of JSON for each network, and what is different from it in words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from replay.networks import REFERENCES
from replay.reader import record

_SHOWN = 500  # letters of an entry
FOLDER = Path(__file__).parent / "stored"


def path_of(name: str) -> Path:
    """Where the record of this network is stored."""
    return FOLDER / f"{name}.json"


def stored(name: str) -> Any:
    """The stored record of this network; empty where there is none yet."""
    return json.loads(path_of(name).read_text()) if path_of(name).exists() else {}


def found(name: str) -> Any:
    """The record of this network by the code as it is."""
    torch.manual_seed(0)
    reference = REFERENCES[name]
    return record(*reference.build(), **reference.options)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Each entry that is different, by its path in the record, in the order of the record."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            yield from differences(old.get(key), new.get(key), f"{where} / {key}" if where else key)
    elif isinstance(old, list) and isinstance(new, list):
        if len(old) != len(new):
            yield f"{where}: {len(old)} entries were stored, {len(new)} are found"
        for number, (one, other) in enumerate(zip(old, new, strict=False)):
            yield from differences(one, other, f"{where}[{number}]")
    elif old != new:
        yield f"{where}\n    stored: {_text(old)}\n    found:  {_text(new)}"


def _text(entry: Any) -> str:
    text = json.dumps(entry)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]} ..."
