"""Tensors that a model has made for itself since its search space was made: tables, hidden states, kept features.

They are neither parameters nor buffers, so no plan tells of them, and they have the dense sizes. The cut network starts
without them, as the model was when it was analysed.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from niwaki.core.names import named_modules
from niwaki.core.objects import Note, attributes_of, copyable
from niwaki.program.module import Program

_PLAIN = (type(None), bool, int, float, complex, str)
_SEQUENCES = (list, deque, tuple)
_INTERNALS = frozenset(nn.Module().__dict__) - {"training"}
_NAMED = 3  # tensors that a warning names
_ABSENT = object()
_HOLDER = object()


@dataclass(frozen=True, slots=True)
class _Shape:
    """Stands for a tensor of this shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Beside:
    """What a model held beside its modules, parameters and buffers: by the path of a module, container or object, its
    plain values, and marks for tensors and for what has a path of its own."""

    holders: Mapping[str, Mapping[str, Any]]


_KNOWN: WeakKeyDictionary[nn.Module, Beside] = WeakKeyDictionary()


def remember_beside(model: nn.Module) -> None:
    """Note what ``model`` holds now, when its search space is made."""
    if isinstance(model, Program):
        return
    holders: dict[str, dict[str, Any]] = {}
    seen: set[int] = set()

    def note(path: str, holder: Any) -> None:
        entries = holders[path] = {}
        for label, value in _items(holder):
            if isinstance(value, _PLAIN):
                entries[label] = value
            elif isinstance(value, Tensor):
                entries[label] = _shape(value)
            else:
                entries[label] = _HOLDER
                if _holds(value) and id(value) not in seen:
                    seen.add(id(value))
                    note(path + label, value)

    for path, module in named_modules(model):
        note(path, module)
    _KNOWN[model] = Beside(holders)


def share_beside(model: nn.Module, copy: nn.Module) -> None:
    """What was known of ``model`` is known of its copy."""
    if model in _KNOWN:
        _KNOWN[copy] = _KNOWN[model]


def forget_leftovers(model: nn.Module, like: nn.Module | None = None, only_look: bool = False) -> list[str]:
    """Put ``model`` into the state in which its search space found it, as far as tensors of its own are concerned, and
    return their names. Those of a single number stay, and so does what took the place of another tensor. What trains
    the model, an optimizer and what holds one (a trainer, a method), is left alone.

    ``like``: the model that was analysed, if ``model`` is a copy of it that others have made.
    """
    known = _KNOWN.get(model if like is None else like)
    if known is None:
        return []
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    seen: set[int] = set()
    names: list[str] = []

    def walk(path: str, holder: Any) -> None:
        entries = known.holders.get(path, {})
        for label, value in reversed(list(_items(holder))):  # from the end: positions before it stay what they are
            before = entries.get(label, _ABSENT)
            if isinstance(value, _PLAIN) or (isinstance(value, Tensor) and before == _shape(value)):
                continue
            inside = _holds(value) and before is _HOLDER and path + label in known.holders
            if not (inside and isinstance(value, (dict, list, deque))) and _trains(value, set()):
                continue
            if inside and not isinstance(value, tuple):
                if id(value) not in seen:
                    seen.add(id(value))
                    walk(path + label, value)
            elif (before is _ABSENT or isinstance(before, _PLAIN)) and _made(value, own, set()):
                names.append((path + label).lstrip("."))
                if not only_look:
                    _put_back(holder, label, before)

    for path, module in named_modules(model):
        walk(path, module)
    return names[::-1]


def warn_of_leftovers(model: nn.Module, like: nn.Module | None = None) -> None:
    """Say what the cut of ``model`` leaves out."""
    names = forget_leftovers(model, like, only_look=True)
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        warnings.warn(
            "The cut network starts without tensors that the model has made for itself since its search space was "
            f"made: {', '.join(map(repr, names[:_NAMED]))}{more}. They may have the dense sizes. What it cannot make "
            "anew in its next forward pass has to be a buffer before niwaki.search_space is called.",
            stacklevel=3,
        )


def _items(holder: Any) -> Iterator[tuple[str, Any]]:
    """What is in a module, container or plain object, each with its place as it is written."""
    if isinstance(holder, dict):
        yield from ((_label(key, place), value) for place, (key, value) in enumerate(dict.items(holder)))
    elif isinstance(holder, _SEQUENCES):
        yield from ((f"[{index}]", value) for index, value in enumerate(holder))
    else:
        for kept in attributes_of(holder):
            yield from ((f".{name}", value) for name, value in kept.items() if name not in _INTERNALS)


def _label(key: object, place: int) -> str:
    """A key as it is written; one of another kind, which need not be the same in a copy, by its place."""
    written = isinstance(key, _PLAIN) or (isinstance(key, tuple) and all(isinstance(item, _PLAIN) for item in key))
    return f"[{key!r}]" if written else f"[{type(key).__qualname__} {place}]"


def _holds(value: Any) -> bool:
    if isinstance(value, (dict, *_SEQUENCES)):
        return True
    return not isinstance(value, (nn.Module, Tensor, type, Note)) and not callable(value) and copyable(type(value))


def _shape(value: Tensor) -> _Shape:
    return _Shape(() if is_lazy(value) else tuple(value.shape))


def _made(value: Any, own: set[int], seen: set[int]) -> bool:
    """Whether there is a tensor of more than one number that the model does not own."""
    if isinstance(value, Tensor):
        return id(value) not in own and value.numel() > 1
    if not _holds(value) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_made(item, own, seen) for _, item in _items(value))


def _trains(value: Any, seen: set[int]) -> bool:
    """Whether an optimizer can be reached from it: what trains a model is not a part of it. A reference to the model
    alone is no sign: a cache of what it has computed may have one, too."""
    if isinstance(value, Optimizer):
        return True
    if not _holds(value) or id(value) in seen:
        return False
    seen.add(id(value))
    return any(_trains(item, seen) for _, item in _items(value))


def _put_back(holder: Any, label: str, before: Any) -> None:
    """Give a place what it held ``before``, or nothing. Of a class of the user's, no code runs."""
    if isinstance(holder, dict):
        kind = OrderedDict if isinstance(holder, OrderedDict) else dict
        keys = (key for place, key in enumerate(dict.keys(holder)) if _label(key, place) == label)
        kind.__delitem__(holder, next(keys)) if before is _ABSENT else kind.__setitem__(holder, next(keys), before)
    elif isinstance(holder, (list, deque)):
        if before is _ABSENT:
            del holder[int(label[1:-1])]
        else:
            holder[int(label[1:-1])] = before
    elif before is _ABSENT:
        object.__delattr__(holder, label[1:])
    else:
        object.__setattr__(holder, label[1:], before)
