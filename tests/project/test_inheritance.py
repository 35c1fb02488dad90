"""Classes are abstract or final: what one implements no subclass implements again."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

import niwaki

OWN = {"forward"}  # of the networks that samples of rules are: what each of them computes


def classes() -> Iterator[type]:
    """All classes that niwaki defines."""
    for found in pkgutil.walk_packages(niwaki.__path__, "niwaki."):
        if found.name.endswith("__main__"):
            continue
        module = importlib.import_module(found.name)
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == module.__name__:
                yield value


def implements(value: object) -> bool:
    """Whether it is a method or property with a body of its own."""
    if isinstance(value, property):
        value = value.fget
    if isinstance(value, staticmethod | classmethod):
        value = value.__func__
    return inspect.isfunction(value) and not getattr(value, "__isabstractmethod__", False)


def overridden(kind: type) -> list[str]:
    """The methods of niwaki's that ``kind`` implements although a class above it has."""
    above = [base for base in kind.__mro__[1:] if base.__module__.startswith("niwaki.")]
    return [
        f"{kind.__qualname__}.{name} of {base.__qualname__}"
        for name, value in vars(kind).items()
        if name not in OWN and not (name.startswith("__") and name.endswith("__")) and implements(value)
        for base in above
        if implements(vars(base).get(name))
    ]


def test_no_concrete_method_is_overridden() -> None:
    assert [one for kind in classes() for one in overridden(kind)] == []


def test_the_test_sees_one() -> None:
    class Again(niwaki.HESSO):
        def plan(self) -> niwaki.Plan:  # type: ignore[misc]
            raise NotImplementedError

    assert overridden(Again) == [f"{Again.__qualname__}.plan of Method"]
