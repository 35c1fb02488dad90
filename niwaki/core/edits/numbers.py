"""Numbers in Python that follow a cut: attributes of modules, and sizes that ``torch.nn`` keeps for show."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import torch
from torch import nn

from niwaki.core.edits.base import ModuleEdit, Place, Shape, edited_by_hand, nothing_to_mask, register_edit
from niwaki.core.metadata import SIZES, RememberedSize
from niwaki.core.names import is_of_graph, named_modules
from niwaki.core.objects import class_attribute
from niwaki.core.paths import Where, describe, is_setting, replaced, where_from_json, where_to_json
from niwaki.core.positions import whole_number
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


class _NumberEdit(ModuleEdit):
    """A new number in Python for a module: no tensor changes, and the last of several wins."""

    __slots__ = ()

    module: str
    value: float

    @property
    @abstractmethod
    def path(self) -> str:
        """Where it is in its module, as one would write it."""

    @final
    def check(self, plan: Plan) -> None:
        pass

    @final
    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        pass

    @final
    @property
    def moved(self) -> Mapping[str, str | None]:
        return {}

    @final
    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        return nothing_to_mask

    @final
    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        return later or first

    @final
    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if whole is None and first is not None:
            raise _left_as_it_was(first.path, first.module, first.value)
        return None if first == whole else whole


@final
@register_edit
@dataclass(frozen=True, slots=True)
class SetAttribute(_NumberEdit):
    """A new value for an integer attribute of a module, or for one inside it. The module alone gets it: containers
    and objects on the way there are replaced by copies, for others may hold them too."""

    kind: ClassVar[str] = "set attribute"

    module: str
    name: str
    where: Where
    value: int

    @property
    def place(self) -> Place:
        return "set attribute", self.module, self.name, self.where

    @property
    def for_graph(self) -> bool | None:
        return is_of_graph(self.name)

    @property
    def path(self) -> str:
        return describe("", self.name, self.where)

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        value = getattr(modules.get(self.module), self.name, None)
        try:
            replaced(value, self.where, self.value)
        except LookupError:
            raise edited_by_hand(
                f"sets '{self.path}' of the module {self.module!r}, which has no such number there: {self.name!r} "
                f"is {_shortened(value)}"
            ) from None

    def apply(self, modules: Mapping[str, nn.Module]) -> None:
        """Written into ``__dict__``: nothing of the module's attribute handling may run."""
        try:
            module = modules[self.module]
            if self.name in module.__dict__:
                module.__dict__[self.name] = replaced(module.__dict__[self.name], self.where, self.value)
            elif is_setting(setting := class_attribute(type(module), self.name)) and (
                self.where or type(setting) is int
            ):
                module.__dict__[self.name] = replaced(setting, self.where, self.value)
            else:
                raise LookupError(self.name)
        except LookupError:
            raise PlanError(
                f"The plan sets '{self.path}' of the module {self.module!r} to {self.value}, but this model has no "
                "such attribute. Pass the dense model the plan was made for."
            ) from None

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        module = name(self.module)
        return None if module is None else replace(self, module=module)

    def to_data(self) -> dict[str, Any]:
        return {"module": self.module, "name": self.name, "where": where_to_json(self.where), "value": self.value}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["module"]), str(data["name"]), where_from_json(data["where"]), whole_number(data["value"]))

    def __str__(self) -> str:
        return f"{describe(self.module, self.name, self.where)} = {self.value}"


@final
@register_edit
@dataclass(frozen=True, slots=True)
class SetScalar(_NumberEdit):
    """A new ``value`` for the float attribute ``name`` of a module (times the machine epsilon of the model's dtype, if
    ``epsilon``)."""

    kind: ClassVar[str] = "set scalar"

    module: str
    name: str
    value: float
    epsilon: bool

    @property
    def place(self) -> Place:
        return "set scalar", self.module, self.name

    @property
    def path(self) -> str:
        return self.name

    @property
    def for_graph(self) -> bool | None:
        return None

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        if self.module not in modules or self.name not in modules[self.module].__dict__:
            raise edited_by_hand(f"rescales {self.name!r} of the module {self.module!r}, which has no such number")

    def apply(self, modules: Mapping[str, nn.Module]) -> None:
        value = self.value
        if self.epsilon:
            kinds = (p.dtype for p in modules[""].parameters() if p.is_floating_point())
            value *= torch.finfo(next(kinds, torch.get_default_dtype())).eps
        modules[self.module].__dict__[self.name] = value

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        module = name(self.module)
        return None if module is None else replace(self, module=module)

    def to_data(self) -> dict[str, Any]:
        return {"module": self.module, "name": self.name, "value": self.value, "epsilon": self.epsilon}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["module"]), str(data["name"]), float(data["value"]), bool(data["epsilon"]))

    def __str__(self) -> str:
        return f"{describe(self.module, self.name, ())} = {self.value:.6g}{' machine epsilons' if self.epsilon else ''}"


def derived_attributes(
    model: nn.Module, lengths: Mapping[tuple[str, int], int], edits: Sequence[SetAttribute]
) -> list[SetAttribute]:
    """Sizes that ``torch.nn`` modules keep for show (``out_features``, ``num_features``, ...) and nobody reads in
    ``forward``: they follow their parameters, whose new ``lengths`` are by tensor and dimension. Attributes that
    ``edits`` already decide are left alone."""
    decided = {(e.module, e.name) for e in edits if not e.where}
    changes: dict[str, int] = {f"{e.module}.{e.name}": e.value for e in edits if not e.where}
    modules = list(named_modules(model))
    names: dict[int, str] = {}  # the first of those that a tensor has
    for path, module in modules:
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            names.setdefault(id(tensor), f"{path}.{name}" if path else name)
    derived: list[SetAttribute] = []
    known: dict[type, list[RememberedSize]] = {}
    for path, module in modules:
        kind = type(module)
        if kind not in known:
            known[kind] = [size for base, sizes in SIZES.items() if issubclass(kind, base) for size in sizes]
        for size in known[kind]:
            # Not as an attribute: that may be computed, and change the module when it is read (spectral norm).
            tensor = module._parameters.get(size.tensor, module._buffers.get(size.tensor))
            if tensor is None or (path, size.name) in decided:
                continue
            decided.add((path, size.name))  # by the first of the tensors listed that there is
            key = names[id(tensor)], size.dim
            length = lengths.get(key, tensor.shape[size.dim])
            times = f"{path}.{size.times}"
            if size.times is not None:
                length *= changes.get(times, getattr(module, size.times))
            # Not compared with the value here: the module may have been shrunk in place since the plan's space was
            # found, and a fresh dense one needs the edit all the same.
            if key in lengths or times in changes:
                derived.append(SetAttribute(path, size.name, (), length))
    return derived


def _left_as_it_was(path: str, module: str, value: float) -> PlanError:
    return PlanError(
        f"The plan leaves '{path}' of the module {module!r} as it was in the dense network, but this model was shrunk "
        f"and has {value} there. Analyse the model as it is now with niwaki.search_space."
    )


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
