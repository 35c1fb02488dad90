"""Plans of formats 1 and 2, which listed each kind of change under a name of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from niwaki.core.edits.base import Edit, edited_by_hand
from niwaki.core.edits.keep import Keep, KeepDirection
from niwaki.core.edits.numbers import SetAttribute, SetScalar
from niwaki.core.edits.rescale import Rescale
from niwaki.core.edits.zeroed import Zeroed
from niwaki.core.paths import where_from_json
from niwaki.core.positions import Positions


def edits_of_older(data: Mapping[str, Any]) -> tuple[Edit, ...]:
    """The edits of a plan of format 1, which had no repairs and set some attributes twice, or 2.

    Raises:
        PlanError: it contradicts itself.
        KeyError, TypeError, ValueError: it is something else.
    """
    return tuple({edit.place: edit for edit in _listed(data)}.values())


def _listed(data: Mapping[str, Any]) -> Iterator[Edit]:
    directions = {(str(name), int(dim)) for name, dim in data.get("directions", ())}
    for name, dims in data["tensors"].items():
        for dim, kept in dims.items():
            kind = KeepDirection if (str(name), int(dim)) in directions else Keep
            directions.discard((str(name), int(dim)))
            yield kind(str(name), int(dim), Positions(map(int, kept)))
    for name, dim in sorted(directions):
        raise edited_by_hand(f"calls dimension {dim} of {name!r} a direction, and does not cut it")
    for name, factor, shift in data.get("repairs", ()):
        yield Rescale(str(name), float(factor), float(shift))
    for module, name, where, value in data["attributes"]:
        yield SetAttribute(str(module), str(name), where_from_json(where), int(value))
    for module, name, value, epsilon in data.get("scalars", ()):
        yield SetScalar(str(module), str(name), float(value), bool(epsilon))
    yield from map(Zeroed.from_data, data.get("zeroed_by_method", ()))
