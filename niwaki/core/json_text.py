"""JSON that a person can read and compare line by line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def item_a_line(data: Mapping[str, Any]) -> str:
    """A JSON object in which each item of its own containers has a line.

    >>> print(item_a_line({"format": 3, "kept": [[0, 1], [2]], "by": {"a": [1], "b": {}}, "none": []}))
    {
     "format": 3,
     "kept": [
      [0, 1],
      [2]
     ],
     "by": {
      "a": [1],
      "b": {}
     },
     "none": []
    }
    """
    return "{\n" + ",\n".join(f" {json.dumps(key)}: {_lines(value)}" for key, value in data.items()) + "\n}"


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"  {json.dumps(key)}: {json.dumps(item)}" for key, item in value.items()) + "\n }"
    return json.dumps(value)
