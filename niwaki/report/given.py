"""Check what a caller of `niwaki.report` gives: whatever a page cannot show truly is a sentence."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsFloat

from niwaki.errors import MethodError
from niwaki.performance.measure import Latencies

_PAGE = ".html"
_ALMOST = (".htm", ".xhtml")
_FRACTIONS = ("accuracy", "macs_left")
_SHOWN = ("step", "loss", *_FRACTIONS)
_MEASURE = "Measure both: niwaki.latency({'dense': model, 'small': small}, x)."


def is_page(path: Path) -> bool:
    """Whether the name is one of a page, not of a directory."""
    return path.suffix.lower() == _PAGE


def place_of(where: object) -> Path:
    """The directory or the page that ``where`` names.

    Raises:
        MethodError: it names neither, or the directory is a file.

    >>> place_of("out/report.html").name
    'report.html'
    """
    if not isinstance(where, str | os.PathLike) or not os.fspath(where):
        raise MethodError(f"niwaki.report writes to a directory or an .html file, but was given {where!r}.")
    path = Path(where)
    if path.suffix.lower() in _ALMOST and not path.is_dir():
        raise MethodError(f"{str(path)!r} is no name of a page: use {str(path.with_suffix(_PAGE))!r}.")
    if path.is_file() and not is_page(path):
        raise MethodError(f"{str(path)!r} is a file. Name a directory, or an .html file to write.")
    return path


def accuracies_of(accuracy: object) -> tuple[float | None, float | None]:
    """The accuracies of the dense network and of the small one.

    Raises:
        MethodError: they are no two fractions.

    >>> accuracies_of((None, 0.97))
    (None, 0.97)
    """
    if not isinstance(accuracy, Sequence) or isinstance(accuracy, str) or len(accuracy) != 2:
        raise MethodError(
            f"accuracy={accuracy!r} must be two fractions, of the dense network and of the small one, such as (0.98, "
            "0.97); None where one is not known."
        )
    dense, small = (None if one is None else _fraction(one, f"accuracy={accuracy!r}") for one in accuracy)
    return dense, small


def history_of(history: object) -> tuple[dict[str, float], ...]:
    """The entries of a history, with what a page draws of them.

    Raises:
        MethodError: an entry has no step, or a value that no chart can have.

    >>> history_of([{"step": 1, "loss": 2.3, "lr": "high"}])
    ({'step': 1.0, 'loss': 2.3},)
    """
    if not isinstance(history, Sequence) or not all(isinstance(entry, Mapping) for entry in history):
        raise MethodError("history= must be a list of dictionaries, such as [{'step': 100, 'loss': 1.2}].")
    return tuple(_entry(entry, f"history[{number}]") for number, entry in enumerate(history))


def latencies_of(latency: object) -> tuple[Latencies, ...]:
    """The latencies, each of a ``dense`` and a ``small`` network.

    Raises:
        MethodError: one is something else, or of other networks.
    """
    several = (latency,) if isinstance(latency, Latencies) else latency
    if not isinstance(several, Sequence) or not all(isinstance(one, Latencies) for one in several):
        raise MethodError(f"latency= must be what niwaki.latency returned, not a {type(latency).__name__}. {_MEASURE}")
    for one in several:
        names = list(one.networks)
        if len(names) < 2:
            raise MethodError(f"A latency of a single network compares nothing. {_MEASURE}")
        if not {"dense", "small"} <= set(names) or names[0] not in ("dense", "small"):
            raise MethodError(
                f"latency= is of {', '.join(map(repr, names))}, and a page compares 'small' with 'dense', one of which "
                f"comes first. {_MEASURE}"
            )
    return tuple(several)


def _entry(entry: Mapping[str, Any], name: str) -> dict[str, float]:
    if "step" not in entry:
        raise MethodError(f"{name} has no 'step', by which a page draws it. It has {', '.join(map(repr, entry))}.")
    found = {key: _number(entry[key], f"{name}[{key!r}]") for key in _SHOWN if key in entry}
    if found["step"] < 0:
        raise MethodError(f"{name}['step'] is {found['step']:g}; steps count from 0.")
    for key in _FRACTIONS:
        if key in found:
            _fraction(found[key], f"{name}[{key!r}]")
    return found


def _fraction(value: object, name: str) -> float:
    number = _number(value, name)
    if not 0 <= number <= 1:
        raise MethodError(f"{name}: {number:g} is not a fraction in 0 to 1. Divide per cent by 100.")
    return number


def _number(value: object, name: str) -> float:
    try:
        if not isinstance(value, SupportsFloat):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise MethodError(f"{name}: {value!r} is not a finite number. Leave out what is not known.")
    return number
