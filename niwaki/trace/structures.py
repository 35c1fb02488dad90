"""Tensors inside inputs and outputs: containers, their subclasses, dataclasses, objects of any kind.

`_items` defines what counts as a container, for all code that finds or replaces tensors.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence, Set, ValuesView
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MappingProxyType, ModuleType
from typing import Any

import torch
from torch.utils._pytree import tree_is_leaf, tree_leaves, tree_map

from niwaki.core.objects import attributes_of, filled, set_attributes
from niwaki.trace.fake import is_fake

ExampleCall = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments
Function = Callable[[torch.Tensor], torch.Tensor]


def tensors_in(structure: Any) -> Iterator[torch.Tensor]:
    """The tensors of inputs or outputs: those in (nested) containers, or, without any, those in other objects.

    A container is a sequence, mapping, set, view of a mapping or dataclass, of a built-in class, a subclass or another
    class, and the classes registered as torch pytrees. An object beside tensors, such as a cache, is not an output of
    the model; neither are the parameters and modules that it refers to.

    Example:
        >>> class Output(dict): ...
        >>> [list(tensor.shape) for tensor in tensors_in((torch.zeros(2), Output(logits=torch.zeros(3, 4))))]
        [[2], [3, 4]]
    """
    found = list(contained(structure))
    return iter(found) if found else _hidden(structure, set())


def contained(structure: Any) -> Iterator[torch.Tensor]:
    """The tensors in (nested) containers alone."""
    return _visible(structure, set())


def map_tensors(structure: Any, function: Function) -> Any:
    """A copy of inputs, with ``function`` applied to the tensors in (nested) containers. Other objects are shared."""
    return _mapped(structure, function, {})


def objects_in(structure: Any) -> list[str]:
    """The types of objects beside tensors that `tensors_in` does not look into, although they hold or create tensors
    (an iterator)."""
    shown = {id(tensor) for tensor in contained(structure)}
    if not shown:
        return []
    return sorted({kind for kind, value in _beside(structure, set()) if _hides(value, shown)})


def others_in(structure: Any) -> list[Any]:
    """The objects in (nested) containers that are neither containers nor tensors nor plain data."""
    return [value for _, value in _beside(structure, set())]


def _items(value: Any) -> list[Any] | None:
    """The items of a container; None for any other object. No code of subclasses of built-in classes runs."""
    if isinstance(value, _WHOLE):
        return None
    base = _base(value)
    if base is not object:
        held = list(dict.values(value) if base is dict else base.__iter__(value))
        held = _sorted(held) if base in (set, frozenset) else held
        return held + _further_fields(value, held)
    if is_dataclass(value):
        return _further_fields(value, [])
    if not tree_is_leaf(value):  # of a class that was registered as a pytree
        return tree_leaves(value, is_leaf=lambda part: part is not value)
    if isinstance(value, Mapping):
        return [value[key] for key in value]
    return list(value) if isinstance(value, (Sequence, Set, ValuesView)) else None


def _base(value: Any) -> Any:
    """The built-in container class of an object; `object` if it has none."""
    return next((builtin for builtin in _BUILT_IN if isinstance(value, builtin)), object)


def _further_fields(value: Any, held: list[Any]) -> list[Any]:
    """The fields of a dataclass, except those that it also holds as a container."""
    if not is_dataclass(value):
        return []
    known = {id(item) for item in held}
    values = [getattr(value, field.name, None) for field in fields(value)]
    return [item for item in values if id(item) not in known]


def _sorted(held: list[Any]) -> list[Any]:
    """The items of a set in an order that is the same for equal contents, whatever their identities."""
    return sorted(held, key=lambda item: [_print_of(tensor) for tensor in contained(item)])


def _print_of(tensor: torch.Tensor) -> tuple[tuple[int, ...], str, float]:
    """A number that tells tensors of one shape and type apart by their content."""
    content = 0.0
    if not (is_fake(tensor) or tensor.is_meta or tensor.is_complex()):
        flat = tensor.detach().reshape(-1).double().nan_to_num()
        content = float(flat @ torch.arange(1, len(flat) + 1, dtype=flat.dtype, device=flat.device).cos())
    return tuple(tensor.shape), str(tensor.dtype), content


def _visible(structure: Any, above: set[int]) -> Iterator[torch.Tensor]:
    """The tensors in (nested) containers; ``above`` are the containers around this one, which it may contain again."""
    if isinstance(structure, torch.Tensor):
        yield structure
        return
    held = _items(structure) if id(structure) not in above else None
    if held is not None:
        above.add(id(structure))
        for item in held:
            yield from _visible(item, above)
        above.discard(id(structure))


def _hidden(thing: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    """The tensors in any objects, except parameters and modules that objects refer to."""
    if isinstance(thing, torch.Tensor):
        yield thing
    elif not isinstance(thing, _WHOLE) and id(thing) not in seen:
        seen.add(id(thing))
        for item in _items(thing) or ():
            yield from _hidden(item, seen)
        for value in _own(thing):
            if not isinstance(value, torch.nn.Parameter):
                yield from _hidden(value, seen)


def _beside(structure: Any, above: set[int]) -> Iterator[tuple[str, Any]]:
    """The objects in (nested) containers that are neither containers nor tensors, each with the name of its type; the
    attributes of containers that are not among their items, with the name of the container's type; the keys of
    mappings."""
    if isinstance(structure, (torch.Tensor, *_WHOLE)) or id(structure) in above:
        return
    kind = type(structure).__qualname__
    held = _items(structure)
    if held is None:
        yield kind, structure
        return
    items = {id(item) for item in held}
    yield from ((kind, value) for value in _own(structure) if id(value) not in items)
    yield from ((f"the keys of {kind}", key) for key in _keys(structure) if not isinstance(key, _WHOLE))
    above.add(id(structure))
    for item in held:
        yield from _beside(item, above)
    above.discard(id(structure))


def _hides(value: Any, shown: set[int]) -> bool:
    """Whether an object holds or creates tensors that are not among the ``shown``."""
    return isinstance(value, Iterator) or any(id(tensor) not in shown for tensor in _hidden(value, set()))


def _own(thing: Any) -> list[Any]:
    """The attributes of an object, and the closure and arguments of a function."""
    own, slots = attributes_of(thing)
    if isinstance(thing, FunctionType):  # among its slots are all variables of its file
        cells = [cell.cell_contents for cell in thing.__closure__ or () if filled(cell)]
        return [*own.values(), *cells, *(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
    bound = [thing.__self__] if isinstance(thing, BuiltinFunctionType) else []
    return [*(own.values() if own is not thing else ()), *slots.values(), *bound]


def _keys(structure: Any) -> list[Any]:
    """The keys of a mapping."""
    if isinstance(structure, dict):
        return list(dict.keys(structure))
    return list(structure) if isinstance(structure, Mapping) else []


def _mapped(value: Any, function: Function, made: dict[int, Any]) -> Any:
    """``value``, copied if it is a container or tensor. ``made`` holds the copies by the identity of their originals,
    so that a shared object is copied once."""
    if id(value) in made:
        return made[id(value)]
    if isinstance(value, torch.Tensor):
        made[id(value)] = function(value)
    elif _items(value) is not None:
        made[id(value)] = _copied(value, partial(_mapped, function=function, made=made), made)
    return made.get(id(value), value)


def _copied(value: Any, inside: Callable[[Any], Any], made: dict[int, Any]) -> Any:
    """A container of the same class with ``inside`` applied to its items and attributes. No code of subclasses of
    built-in classes runs: it may forbid writing, or do more than write."""
    kind, base = type(value), _base(value)
    if base is object and isinstance(value, ValuesView):
        return [inside(item) for item in value]
    if base is object and kind is MappingProxyType:
        return MappingProxyType({key: inside(item) for key, item in value.items()})
    if base is object and not tree_is_leaf(value):
        return tree_map(inside, value, is_leaf=lambda part: part is not value)
    if base in (tuple, frozenset):
        items = [inside(item) for item in base.__iter__(value)]
        try:
            copy = base.__new__(kind, items)
        except TypeError:  # torch's tuples of results, which only their own class can create
            return kind(items)
    else:
        try:
            copy = made[id(value)] = base.__new__(kind)
        except TypeError:  # part of it lies where Python code cannot read
            return value
        _fill(copy, value, base, inside)
    own, slots = attributes_of(value)
    if own is value:
        copy.__dict__ = copy
        own = {}
    mapped = ({name: inside(item) for name, item in kept.items()} for kept in (own, slots))
    set_attributes(copy, *mapped)
    return copy


def _fill(copy: Any, value: Any, base: Any, inside: Callable[[Any], Any]) -> None:
    """Put the items of a container that can be written to into its empty copy."""
    if isinstance(value, defaultdict):
        defaultdict.__init__(copy, value.default_factory)
    if base is dict:
        kind = OrderedDict if isinstance(value, OrderedDict) else dict
        for key, item in kind.items(value):
            kind.__setitem__(copy, key, inside(item))
    elif base is list:
        list.extend(copy, [inside(item) for item in list.__iter__(value)])
    elif base is set:
        set.update(copy, [inside(item) for item in set.__iter__(value)])
    elif base is deque:
        deque.__init__(copy, [inside(item) for item in deque.__iter__(value)], value.maxlen)


_BUILT_IN = (list, tuple, dict, deque, set, frozenset)
_WHOLE = (  # these hold no tensors, or none that count
    *(int, float, complex, str, bytes, bytearray, range, memoryview, type, type(None)),
    *(torch.nn.Module, torch.Size, torch.dtype, torch.device, ModuleType),
)


def input_names(model: torch.nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[int, str]:
    """What the tensors among the arguments of a model are called, by identity: their parameter of ``forward``, with a
    number if it has several; positional ones that ``forward`` has no name for are numbered. A module of any signature
    can have its own, as ``__signature__``."""
    try:
        signature = model.__dict__.get("__signature__") or inspect.signature(model.forward)
        known = [
            name
            for name, one in signature.parameters.items()
            if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)
        ]
    except (TypeError, ValueError):
        known = []
    rest = [f"input {place}" for place in range(len(known), len(args))]
    found: dict[int, str] = {}
    for name, value in (*zip([*known, *rest], args, strict=False), *kwargs.items()):
        own = list(contained((value,)))
        for place, tensor in enumerate(own):
            found.setdefault(id(tensor), name if len(own) == 1 else f"{name}[{place}]")
    return found
