"""Which of a model's numbers a trace tracks."""

from __future__ import annotations

from dataclasses import dataclass

from niwaki.core.paths import Where

Place = tuple[str, str, Where]  # a module, an attribute, the path inside it


@dataclass(frozen=True, slots=True)
class Extent:
    """What is not tracked is a plain number, which counts as a literal and pins what it touches.

    ``attributes``: track the numbers among the attributes of modules, but for the places that are ``plain``, and leave
    containers and objects alone whose identities are among ``objects``. ``sizes``: give Python code tracked sizes of
    tensors, but for that of the modules ``unsized``.
    """

    attributes: bool = True
    sizes: bool = True
    plain: frozenset[Place] = frozenset()
    objects: frozenset[int] = frozenset()
    unsized: frozenset[str] = frozenset()


EVERYTHING = Extent()
NOTHING = Extent(attributes=False, sizes=False)
