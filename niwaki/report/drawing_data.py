"""A drawing from the plain data that `dataclasses.asdict` makes of it, as reports hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from niwaki.report.drawing import Drawing, GroupPath, ModuleNode, PathStop, Pinned, StructurePath
from niwaki.report.inspection import GroupFigures, PinReason


def drawing_from_data(data: Mapping[str, Any]) -> Drawing:
    """The drawing again.

    Raises:
        KeyError, TypeError: the data are not those of a drawing.

    >>> import dataclasses, json, niwaki, torch
    >>> from niwaki.report.drawing import drawing
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> drawn = drawing(niwaki.search_space(net, torch.randn(1, 4)), "two layers")
    >>> drawing_from_data(json.loads(json.dumps(dataclasses.asdict(drawn)))) == drawn
    True
    """
    return Drawing(
        title=data["title"],
        summary=data["summary"],
        blocks=tuple(
            ModuleNode(**{**block, "pins": tuple(Pinned(pin["reason"], tuple(pin["lines"])) for pin in block["pins"])})
            for block in data["blocks"]
        ),
        lines=tuple(
            GroupPath(
                GroupFigures(**{**line["group"], "tensors": tuple(line["group"]["tensors"])}),
                tuple(PathStop(**stop) for stop in line["stops"]),
                line["kept"],
            )
            for line in data["lines"]
        ),
        reasons=tuple(PinReason(**{**reason, "lines": tuple(reason["lines"])}) for reason in data["reasons"]),
        structures=tuple(
            StructurePath(**{**whole, **{name: tuple(whole[name]) for name in ("parameters", "blocks", "makes")}})
            for whole in data["structures"]
        ),
    )
