"""The report of a run, as data and as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from niwaki.core.scalars import is_whole
from niwaki.errors import FileFormatError
from niwaki.performance.measure import Latency, Ratio
from niwaki.report.drawing import Drawing
from niwaki.report.drawing_data import drawing_from_data

REPORT_FILE = "report.json"
REPORT_FORMAT = 3  # 1 gave latencies in milliseconds; 2 had no map, no steps, no ratios and no baseline
_READ = (2, REPORT_FORMAT)


@dataclass(frozen=True, slots=True)
class Figures:
    """One network in numbers. ``accuracy``: the fraction of correctly classified test images. ``memory``: bytes of
    parameters and buffers. ``macs``: multiply-accumulates for one image. ``latency``: of one image and of a training
    batch."""

    accuracy: float
    params: int
    macs: int
    memory: int
    latency: tuple[Latency, ...]


@dataclass(frozen=True, slots=True)
class Baseline:
    """The same training without pruning: its accuracy, its ``history`` and its time."""

    accuracy: float
    history: tuple[Mapping[str, float], ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class RunReport:
    """The settings and the results of a run.

    ``dense``, ``small``: the trained network before and after the cut, which have one accuracy if the cut is exact.
    ``check``: the result of `niwaki.check`. ``kept``: kept units and all units, by group. ``history``: one entry an
    epoch. ``data``: names, sizes and the normalisation that inputs need: ``(pixel - mean) / std``, pixels in 0 to 255.
    ``ratios``: the latency of the small network over that of the dense one, measured side by side. ``map``: modules,
    groups and pins. ``baseline``: the dense network, trained alike, if that was asked for. ``repair``: of a network
    that was trained before, accuracy and loss before and after the repair; None otherwise.
    """

    recipe: Mapping[str, Any]
    data: Mapping[str, Any]
    versions: Mapping[str, str]
    dense: Figures
    small: Figures
    coverage: float
    check: Mapping[str, Any]
    kept: Mapping[str, tuple[int, int]]
    history: tuple[Mapping[str, float], ...]
    seconds: float
    repair: Mapping[str, Any] | None = None
    ratios: tuple[Ratio, ...] = ()
    map: Drawing | None = None
    baseline: Baseline | None = None

    def to_json(self) -> str:
        """The report as JSON text with a format number; `from_json` reads it back."""
        values = dataclasses.asdict(self)
        if self.repair is None:
            del values["repair"]
        return json.dumps({"format": REPORT_FORMAT, **values}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> RunReport:
        """Read a report back.

        Raises:
            FileFormatError: the text is not a report, or it is of another format than 2 and 3.
        """
        try:
            data = json.loads(text)
            version = data.pop("format")
            if version not in _READ:
                raise FileFormatError(
                    f"The report has format {version!r}, and this niwaki reads the formats {_READ[0]} to {_READ[-1]}. "
                    "Use the niwaki version that wrote it."
                )
            _check_facts(data["recipe"], data["data"])
            base = data.get("baseline")
            return cls(
                **{
                    **data,
                    "dense": _figures(data["dense"]),
                    "small": _figures(data["small"]),
                    "kept": {name: (int(kept), int(units)) for name, (kept, units) in data["kept"].items()},
                    "history": tuple(data["history"]),
                    "ratios": tuple(Ratio(**ratio) for ratio in data.get("ratios", ())),
                    "map": drawing_from_data(data["map"]) if data.get("map") else None,
                    "baseline": Baseline(**{**base, "history": tuple(base["history"])}) if base else None,
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as cause:
            raise FileFormatError(
                f"The text is not the report of a niwaki run: {type(cause).__qualname__}: {cause}. It is damaged or "
                "was written by something else."
            ) from cause


def read_report(directory: str | os.PathLike[str]) -> RunReport:
    """The report of the run in ``directory``.

    Raises:
        FileFormatError: there is none, or it cannot be read.
    """
    path = Path(directory) / REPORT_FILE
    if not path.exists():
        raise FileFormatError(
            f"There is no run in {os.fspath(directory)!r}: it has no {REPORT_FILE}. Name the directory that `niwaki "
            "train --out` or `niwaki prune --out` wrote."
        )
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise FileFormatError(f"{str(path)!r} cannot be read: {cause}.") from cause
    try:
        return RunReport.from_json(text)
    except FileFormatError as cause:
        raise FileFormatError(f"{str(path)!r} cannot be read. {cause}") from cause


def _figures(data: Mapping[str, Any]) -> Figures:
    latency = (Latency(**{**one, "shapes": tuple(tuple(shape) for shape in one["shapes"])}) for one in data["latency"])
    return Figures(**{**data, "latency": tuple(latency)})


def _check_facts(recipe: Mapping[str, Any], data: Mapping[str, Any]) -> None:
    """Raise `ValueError` unless these say which network it is, and which images it takes."""
    names = ("model", "data", "method")
    if not isinstance(recipe, Mapping) or not all(isinstance(recipe[name], str) for name in names):
        raise ValueError("'recipe' names no model, data and method")
    if not is_whole(recipe["seed"]) or not _is_number(recipe.get("width", 1.0)):
        raise ValueError("the 'seed' or the 'width' of 'recipe' is no number")
    shape = data["shape"]
    if len(shape) != 3 or not all(is_whole(size) and size > 0 for size in (*shape, data["classes"])):
        raise ValueError("'data' has no shape [channels, height, width] and a number of classes")
    if not all(len(data[name]) == shape[0] and all(map(_is_number, data[name])) for name in ("mean", "std")):
        raise ValueError("'data' has no mean and std of each channel")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
