"""Find out from the code of a class which of its own attributes its methods read, which runs cannot show.

Most numbers that modules keep are read while they are built and never again. Only a number that another method reads
can be wrong after a cut.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Collection, Iterator
from functools import cached_property, lru_cache, partialmethod
from itertools import pairwise
from types import CodeType, FunctionType

_PRINTING = ("extra_repr", "__repr__", "__str__")
_BY_NAME = frozenset({"getattr", "__dict__", "vars"})


def readers_of(kind: type, shown: Collection[str] = ("forward",)) -> dict[str, str]:
    """The attributes that the methods of ``kind`` may read from their own object, each with the first such method.

    Methods of torch's classes, methods that print the object, ``__init__`` and private methods that only it calls do
    not count, nor do those that runs have ``shown`` and the methods that they call. For what other code reads from such
    an object, see `reader_of_child`.

    >>> class Block:
    ...     def __init__(self, width: int) -> None:
    ...         self.width, self.depth = width, 2
    ...         self._build(self.depth)
    ...     def _build(self, depth: int) -> None:
    ...         self.layers = [self.width] * self.depth
    ...     def merge(self) -> int:
    ...         return self.width
    >>> readers_of(Block)
    {'width': 'merge'}
    """
    reads: dict[str, set[str]] = {}
    for name, function in _methods(kind):
        reads.setdefault(name, set()).update(_reads(function)[0])
    building = {"__init__", *_PRINTING}
    while True:
        called = {name for one in building for name in reads.get(one, ()) if name in reads and _private(name)}
        elsewhere = {name for one, names in reads.items() if one not in building | called for name in names}
        if called - elsewhere <= building:
            break
        building |= called - elsewhere
    known = {*shown}
    while more := {name for one in known for name in reads.get(one, ()) if name in reads} - known:
        known |= more
    found: dict[str, str] = {}
    for one, names in reads.items():
        for name in names if one not in building | known else ():
            found.setdefault(name, one)
    return found


def reader_of(kind: type, attribute: str) -> str | None:
    """The first method of ``kind`` that reads one attribute, as in `readers_of`. Few attributes have one."""
    named = any(
        attribute in code.co_names or not _BY_NAME.isdisjoint(code.co_names)
        for name, function in _methods(kind)
        if name not in ("__init__", "forward", *_PRINTING)
        for code in _codes(function)
    )
    return readers_of(kind).get(attribute) if named else None


def reader_of_child(kind: type, child: str, attribute: str) -> str | None:
    """A method of ``kind`` that may read an attribute of its own attribute ``child``, or of something inside it.

    Such a method reads ``child``, and the attribute from another object than its own. ``__init__``, ``forward`` and
    methods that print do not count.

    >>> class Parent:
    ...     def start(self) -> int:
    ...         return self.cell.width
    >>> reader_of_child(Parent, "cell", "width"), reader_of_child(Parent, "head", "width")
    ('start', None)
    """
    for name, function in _methods(kind):
        named = {one for code in _codes(function) for one in code.co_names}
        if attribute in named and name not in ("__init__", "forward", *_PRINTING):  # most do not name it
            own, others = _reads(function)
            if child in own and attribute in others:
                return name
    return None


def _methods(kind: type) -> Iterator[tuple[str, FunctionType]]:
    """Yield the functions of a class and of its bases, except torch's, with their names."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] not in ("torch", "builtins"):
            for name, member in vars(base).items():
                for function in _functions(member):
                    yield name, function


def _private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _functions(member: object) -> Iterator[FunctionType]:
    """The functions behind a member of a class, without their decorators."""
    if isinstance(member, property):
        inside: tuple[object, ...] = (member.fget, member.fset, member.fdel)
    elif isinstance(member, cached_property | partialmethod):
        inside = (member.func,)
    else:
        inside = (member.__func__ if isinstance(member, classmethod | staticmethod) else member,)
    for one in inside:
        function = inspect.unwrap(one) if callable(one) else one
        if isinstance(function, FunctionType):
            yield function


def _reads(function: FunctionType) -> tuple[frozenset[str], frozenset[str]]:
    """The names that a method reads from its first argument, or by text; and those that it reads from other objects."""
    return _read_by(function.__code__)


@lru_cache(maxsize=2**14)
def _read_by(method: CodeType) -> tuple[frozenset[str], frozenset[str]]:
    own = method.co_varnames[:1]
    found: set[str] = set()
    others: set[str] = set()
    for code in _codes(method):
        if not _BY_NAME.isdisjoint(code.co_names):
            found |= {constant for constant in code.co_consts if isinstance(constant, str)}
        for before, step in pairwise(dis.get_instructions(code)):
            if step.opname in ("LOAD_ATTR", "LOAD_METHOD"):
                (found if _last(before) in own else others).add(str(step.argval))
    return frozenset(found), frozenset(others)


def _codes(function: FunctionType | CodeType) -> Iterator[CodeType]:
    """The code of a function and of those defined in it."""
    waiting = [function if isinstance(function, CodeType) else function.__code__]
    while waiting:
        code = waiting.pop()
        yield code
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]


def _last(step: dis.Instruction) -> object:
    """The variable that an instruction loads (of two, the second)."""
    if not step.opname.startswith(("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE", "STORE_FAST_LOAD_FAST")):
        return None
    return step.argval[-1] if isinstance(step.argval, tuple) else step.argval
