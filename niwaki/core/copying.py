"""Deep copies of models without references to the original.

`copy.deepcopy` treats functions and weak references as constants: in the copy, a hook, a lambda made in ``__init__`` or
a ``forward`` that a trainer has replaced still calls the modules of the original, with their weights. Here functions
that reach the model are rebuilt around the copy. Tensors inside of an autograd graph (features kept after a training
step) are copied without that graph. Objects that the model's code has names for are shared: code may compare them by
identity.
"""

from __future__ import annotations

import copyreg
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from niwaki.core.names import named_modules
from niwaki.core.objects import attributes_of, class_attribute, filled, set_attributes
from niwaki.core.references import ATOMS, Reach, contents, named_globally, names_of
from niwaki.errors import PlanError

_SHARED = (type, ModuleType, CodeType, property, staticmethod, classmethod, torch.jit.ScriptFunction)
_CONTAINERS = (dict, list, tuple, set, frozenset)
_WEAK = (WeakKeyDictionary, WeakValueDictionary)
_PROTOCOL = (
    "__deepcopy__ __reduce__ __reduce_ex__ __getstate__ __setstate__ __getnewargs__ __getnewargs_ex__ __new__".split()
)


class ModelCopier:
    """Copies one model, by `copied`. ``at`` is the attribute that is being copied, for error messages."""

    def __init__(self, model: nn.Module, replaced: Mapping[int, Any]) -> None:
        """``replaced``: the objects that replace others in the copy, by the identities of these."""
        self._model = model
        self._paths = {id(module): path for path, module in named_modules(model)}
        self._memo: dict[int, Any] = dict(replaced)
        self._kept: list[Any] = []  # objects in the memo, which are known by identity, must not be freed before it
        self.at = ""

    @cached_property
    def _reach(self) -> Reach:
        """Computed only for models with functions or objects that need it."""
        return Reach(self._model)

    @cached_property
    def _named(self) -> frozenset[int]:
        """The identities of objects that the code of the model has names for."""
        return names_of(type(module) for module in self._model.modules())

    def copied(self, value: Any) -> Any:
        """A deep copy of a part of the model, the same each time."""
        kind = type(value)
        if kind in ATOMS or isinstance(value, _SHARED):
            return value
        if id(value) in self._memo:
            return self._memo[id(value)]
        built_in = _BUILT_IN.get(kind)
        made = self._of_a_class(kind, value) if built_in is None else built_in(self, value)
        if made is not value:
            self._memo[id(value)] = made
            self._kept.append(value)
        return made

    def _of_a_class(self, kind: type, value: Any) -> Any:
        if issubclass(kind, Tensor):
            return self._tensor(value)
        if issubclass(kind, _WEAK):
            return self._weak_dictionary(value)
        if issubclass(kind, nn.Module) and "__deepcopy__" in vars(kind):
            return self._module(kind, value)
        if getattr(kind, "__deepcopy__", None) is not None:
            return value.__deepcopy__(self._memo)
        if issubclass(kind, dict) and all(class_attribute(kind, name) in _DEFAULT for name in _PROTOCOL):
            return self._dictionary_of_a_class(value)
        return self._object(kind, value)

    def _list(self, value: list[Any]) -> list[Any]:
        made: list[Any] = []
        self._memo[id(value)] = made
        made += map(self.copied, value)
        return made

    def _tuple(self, value: tuple[Any, ...]) -> tuple[Any, ...]:
        items = tuple(map(self.copied, value))
        if id(value) in self._memo:  # a part of it referred back to it
            found: tuple[Any, ...] = self._memo[id(value)]
            return found
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value

    def _dictionary(self, value: dict[Any, Any]) -> dict[Any, Any]:
        made: dict[Any, Any] = {}
        self._memo[id(value)] = made
        for key, item in value.items():
            made[self.copied(key)] = self.copied(item)
        return made

    def _dictionary_of_a_class(self, value: dict[Any, Any]) -> dict[Any, Any]:
        """Copied without code of the class: many a ``__getattr__`` fails for the attributes that copying reads."""
        made = dict.__new__(type(value))
        self._memo[id(value)] = made
        for key, item in dict.items(value):
            dict.__setitem__(made, self.copied(key), self.copied(item))
        own, slots = attributes_of(value)
        if own is value:  # `self.__dict__ = self`, which deepcopy forgets
            object.__setattr__(made, "__dict__", made)
        else:
            set_attributes(made, *({name: self.copied(item) for name, item in kept.items()} for kept in (own, slots)))
        return made

    def _weak_dictionary(self, value: Any) -> Any:
        made = type(value)()
        self._memo[id(value)] = made
        for key, item in value.items():
            made[self._of_the_copy(key)] = self._of_the_copy(item)
        return made

    def _weak(self, value: ref[Any]) -> ref[Any]:
        target = value()
        return ref(self.copied(target)) if target is not None and id(target) in self._reach.owned else value

    def _tensor(self, value: Tensor) -> Tensor:
        if not value.is_leaf:
            return value.detach().clone()
        made: Tensor = value.__deepcopy__(self._memo)  # type: ignore[no-untyped-call]
        return made

    def _method(self, value: MethodType) -> MethodType:
        return MethodType(self.copied(value.__func__), self.copied(value.__self__))

    def _built_in(self, value: BuiltinFunctionType) -> Any:
        """A method of a built-in class, such as the ``append`` of a list."""
        owner = value.__self__
        return getattr(self.copied(owner), value.__name__) if id(owner) in self._reach.owned else value

    def _function(self, value: FunctionType) -> FunctionType:
        """The function itself unless it reaches the model."""
        name = next((name for name, owner in named_globally(value) if id(owner) in self._reach.core), None)
        if name is not None:
            raise PlanError(
                f"The model cannot be copied, and niwaki cuts a copy: the function {value.__qualname__!r}, on the "
                f"attribute {self.at!r}, refers to the model by the global name {name!r}, and would run the weights of "
                "the original in the copy. Let it use a closure, a default argument or the module that it is called "
                "with, or remove it before."
            )
        if not any(map(self._reach.binds, contents(value))):
            return value
        cells = tuple(self._memo.get(id(cell)) or self._cell(cell) for cell in value.__closure__ or ())
        made = FunctionType(value.__code__, value.__globals__, value.__name__, closure=cells or None)
        self._memo[id(value)] = made
        for old, new in zip(value.__closure__ or (), cells, strict=True):
            if new is not old and not filled(new):
                new.cell_contents = self.copied(old.cell_contents)
        if value.__defaults__ is not None:
            made.__defaults__ = tuple(map(self._of_the_copy, value.__defaults__))
        if value.__kwdefaults__ is not None:
            made.__kwdefaults__ = {name: self._of_the_copy(item) for name, item in value.__kwdefaults__.items()}
        made.__dict__.update({name: self._of_the_copy(item) for name, item in value.__dict__.items()})
        made.__qualname__, made.__doc__, made.__module__ = value.__qualname__, value.__doc__, value.__module__
        made.__annotations__ = value.__annotations__
        if all(new is old for new, old in zip(contents(made), contents(value), strict=True)):
            self._memo[id(value)] = value
            return value
        return made

    def _cell(self, value: CellType) -> CellType:
        """A new cell, to be filled, for a value that reaches the model; other cells are shared."""
        if not filled(value) or not self._reach.binds(value.cell_contents):
            return value
        self._memo[id(value)] = made = CellType()
        self._kept.append(value)
        return made

    def _of_the_copy(self, value: Any) -> Any:
        """The counterpart of an object that only functions and weak references refer to: the object itself, unless it
        leads back to the model."""
        return self.copied(value) if self._reach.binds(value) else value

    def _module(self, kind: Any, value: Any) -> Any:
        """Copy a module whose class defines its own copying. (The class that torch creates for a parametrised module
        would call `copy.deepcopy`.)"""
        if not is_parametrized(value) or getattr(kind.__mro__[1], "__deepcopy__", None) is not None:
            return value.__deepcopy__(self._memo)
        self._memo[id(value)] = made = kind.__new__(kind)
        made.__dict__.update(self._state_of(value, value.__dict__))
        return made

    def _object(self, kind: type, value: Any) -> Any:
        """Copy an object. One that the model's code has a name for may be compared with `is`, and is shared; except
        settings, which are compared by content and so have no hash."""
        named = kind.__hash__ is not None and id(value) in self._named
        if named and not issubclass(kind, (nn.Module, *_CONTAINERS)) and self._reach.stands_alone(value):
            return value
        reductor = copyreg.dispatch_table.get(kind)
        reduced: Any = reductor(value) if reductor is not None else value.__reduce_ex__(4)
        return value if isinstance(reduced, str) else self._reconstructed(value, *reduced)

    def _reconstructed(
        self,
        value: Any,
        make: Callable[..., Any],
        arguments: tuple[Any, ...],
        state: Any = None,
        items: Iterable[Any] | None = None,
        pairs: Iterable[tuple[Any, Any]] | None = None,
        set_state: Callable[[Any, Any], None] | None = None,
    ) -> Any:
        """The object that ``__reduce_ex__`` describes, rebuilt from copies by the protocol of pickling."""
        made = make(*map(self.copied, arguments))
        self._memo[id(value)] = made
        if state is not None:
            inside = isinstance(value, nn.Module) and isinstance(state, dict)
            state = self._state_of(value, state) if inside else self.copied(state)
            if set_state is not None:
                set_state(made, state)
            elif getattr(type(made), "__setstate__", None) is not None:
                made.__setstate__(state)
            else:
                own, slots = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
                if own:
                    made.__dict__.update(own)
                for name, item in (slots or {}).items():
                    setattr(made, name, item)
        for item in items or ():
            made.append(self.copied(item))
        for key, item in pairs or ():
            made[self.copied(key)] = self.copied(item)
        return made

    def _state_of(self, module: nn.Module, state: Mapping[str, Any]) -> dict[str, Any]:
        """Copies of a module's attributes; after an error ``at`` is the one it happened in."""
        path, made = self._paths.get(id(module), type(module).__qualname__), {}
        for name, item in state.items():
            self.at = f"{path}.{name}" if path else name
            made[name] = self.copied(item)
        return made


_BUILT_IN: dict[type, Any] = {
    list: ModelCopier._list,
    tuple: ModelCopier._tuple,
    dict: ModelCopier._dictionary,
    ref: ModelCopier._weak,
    MethodType: ModelCopier._method,
    BuiltinFunctionType: ModelCopier._built_in,
    FunctionType: ModelCopier._function,
}
_DEFAULT = frozenset({None, *(getattr(object, name, None) for name in _PROTOCOL), dict.__new__})
