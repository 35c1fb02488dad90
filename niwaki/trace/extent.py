"""The numbers of a model that a trace tracks."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.core.paths import Where

Place = tuple[str, str, Where]  # a module, an attribute, the path inside it


@dataclass(frozen=True, slots=True)
class Extent:
    """The numbers that are tracked. Any other is a plain number, which counts as a literal and pins the dimensions that
    it meets.

    ``attributes``: track the numbers among the attributes of modules, except at the places in ``plain``; containers and
    objects with identities in ``objects`` are not copied. ``sizes``: give Python code tracked sizes of tensors, except
    the code of the modules ``unsized``.
    """

    attributes: bool = True
    sizes: bool = True
    plain: frozenset[Place] = frozenset()
    objects: frozenset[int] = frozenset()
    unsized: frozenset[str] = frozenset()


EVERYTHING = Extent()
NOTHING = Extent(attributes=False, sizes=False)
