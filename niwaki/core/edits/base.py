"""What every kind of edit can do, and the two that change something: tensors, or modules.

A plan carries its edits out in their order: for each tensor those that change it, then, in the copy that has the new
tensors, those that change modules. So a `Rescale`, which comes after the `Keep`s of its tensor, acts on the cut tensor.
A plan has at most one edit at a `place`. Plans in a row are joined place by place: edits of one tensor that do not
commute have to share a place.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, final

import torch
from torch import Tensor, nn

from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan

Place = tuple[Hashable, ...]
Shape = tuple[int, ...]
Factor = Callable[[Tensor], Tensor]  # what becomes of a result behind a gate: a tensor of the same shape
E = TypeVar("E", bound="type[Edit]")


class Edit(ABC):
    """One thing that a plan does to the dense network, or knows of it. All are frozen values."""

    __slots__ = ()

    kind: ClassVar[str]  # its name in files

    @property
    @abstractmethod
    def place(self) -> Place:
        """What it decides: no other edit of a plan has the same place."""

    @abstractmethod
    def check(self, plan: Plan) -> None:
        """Raise `PlanError` if it cannot be an edit of ``plan``: a tensor, a dimension or a position does not exist."""

    @classmethod
    @abstractmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        """What does at once what two plans in a row do at one place: ``first`` to the dense network and ``later`` to
        what is left of it. One of them may do nothing there (None); the result may be None too.

        Raises:
            PlanError: that cannot be said of the dense network.
        """

    @classmethod
    @abstractmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        """The inverse of `then`: what is still to do at a place if ``first`` has been done and ``whole`` is wanted,
        both said of the dense network; one of them may be None. They are edits of ``done`` and ``plan``.

        Raises:
            PlanError: what has been done cannot be taken back.
        """

    @abstractmethod
    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        """The same edit of a network in which tensors and modules have other names: ``name`` gives them, and None for
        what is not there. None if nothing is left of it."""

    @abstractmethod
    def to_data(self) -> dict[str, Any]:
        """Its content as JSON has it, by names; `from_data` reads it back."""

    @classmethod
    @abstractmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        """What `to_data` gave.

        Raises:
            KeyError, TypeError, ValueError: it is something else.
        """

    @abstractmethod
    def __str__(self) -> str:
        """What it does, in one line."""


class TensorEdit(Edit):
    """An edit that makes another tensor of one parameter or buffer."""

    __slots__ = ()

    tensor: str

    @property
    @abstractmethod
    def dims(self) -> tuple[int, ...]:
        """The dimensions of which not all positions stay."""

    @abstractmethod
    def shape_of(self, shape: Shape) -> Shape:
        """The shape after it."""

    @abstractmethod
    def of(self, tensor: Tensor) -> Tensor:
        """What becomes of the tensor: a new one, of the same dtype and on the same device."""

    @abstractmethod
    def of_gradient(self, gradient: Tensor) -> Tensor:
        """The gradient with respect to the new tensor, from that with respect to the one before, where what is removed
        is zero: a new tensor."""

    @abstractmethod
    def of_state(self, state: Tensor, dims: Mapping[int, int], power: Callable[[], int]) -> Tensor:
        """What an optimizer remembers of the new tensor, from what it remembers of the one before.

        ``dims``: which dimension of ``state`` goes with which of the tensor, where it has one. ``power()``: with which
        power of the tensor's scale the state goes; it raises `ShrinkError` where that is not known.
        """

    @abstractmethod
    def zero_(self, tensor: Tensor) -> None:
        """Set what it removes to zero in a tensor of the dense network, which the cut one must then agree with."""


class ModuleEdit(Edit):
    """An edit that changes modules in a copy of the model whose tensors have been changed already."""

    __slots__ = ()

    @property
    @abstractmethod
    def for_graph(self) -> bool | None:
        """Whether it is for exported programs only (True), for modules only (False), or for both (None)."""

    @abstractmethod
    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        """Raise `PlanError` if the dense model with these ``modules``, by path, has not what it changes."""

    @abstractmethod
    def apply(self, modules: Mapping[str, nn.Module]) -> None:
        """Change the modules of the smaller copy, by path; the model itself is ``modules[""]``.

        Raises:
            PlanError: they have not what it changes.
        """

    @abstractmethod
    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        """Add those of modules that come instead to the ``shapes`` of the tensors after the cut, by their new names.
        What is `moved` has its new name there already, or is gone."""

    @property
    @abstractmethod
    def moved(self) -> Mapping[str, str | None]:
        """The modules and tensors that have another name in their module afterwards, by their path before; None for
        those that are gone."""

    @abstractmethod
    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        """Make the dense model compute what the cut one does, as far as zeros in tensors do not; the result undoes
        that."""


class GatedEdit(ModuleEdit):
    """An edit that erases terms, some of which no parameters make: a gate makes these zero before."""

    __slots__ = ()

    @property
    @abstractmethod
    def is_gated(self) -> bool:
        """Whether there are such terms."""

    @abstractmethod
    def gate(self, modules: Mapping[str, nn.Module], factor: Factor) -> Callable[[], None]:
        """Let ``factor`` make something else of each such term in the dense network, until the result is called."""


@dataclass(frozen=True, slots=True)
class NewParameter:
    """A parameter of a module that comes instead: what ``of`` makes of the parameter ``old`` of the module before.
    ``selects``: it is some of its entries, so that gradients and averages of them follow in the same way."""

    old: str
    of: Callable[[Tensor], Tensor]
    selects: bool


class ReplacingEdit(ModuleEdit):
    """An edit that puts another module in the place of ``module``, whose tensors become those of its own."""

    __slots__ = ()

    module: str

    @property
    @final
    def place(self) -> Place:
        return self.kind, self.module

    @property
    @final
    def for_graph(self) -> bool | None:
        return False

    @final
    def apply(self, modules: Mapping[str, nn.Module]) -> None:
        old = modules[self.module]
        holders = list(modules[""].modules())  # the new module may hold the old one
        made = self.replacement(old)
        made.train(old.training)
        for holder in holders:
            for name, child in holder._modules.items():
                if child is old:
                    holder._modules[name] = made

    @abstractmethod
    def replacement(self, old: nn.Module) -> nn.Module:
        """The new module, from the ``old`` one."""

    @abstractmethod
    def parts(self) -> Mapping[str, NewParameter]:
        """The parameters of the new module, by their names there, from those of the cut one."""

    @abstractmethod
    def before(self, done: Plan) -> Self:
        """This edit, which is of a network that ``done`` has been carried out in, said of the dense network."""

    @abstractmethod
    def joined(self, later: Iterable[Edit]) -> tuple[Self, list[Edit]]:
        """What this edit and ``later`` ones, which are of the network with the new module, do together: this edit, as
        it is then, and the others as edits of the network without it.

        Raises:
            PlanError: that cannot be said so.
        """

    @classmethod
    @final
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        return later or first

    @final
    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        module = name(self.module)
        return None if module is None else replace(self, module=module)  # type: ignore[type-var]


def closed(result: Tensor) -> Tensor:
    """What is behind a gate of 0."""
    return torch.zeros_like(result)


def nothing_to_mask() -> None:
    """What undoes a `ModuleEdit.mask` that does nothing: sizes, and numbers that follow them."""


@dataclass(frozen=True, slots=True)
class TensorChange:
    """What a plan does to one tensor: some edits in their order, or none."""

    tensor: str
    edits: tuple[TensorEdit, ...] = ()

    @property
    def dims(self) -> frozenset[int]:
        """The dimensions of which not all positions stay."""
        return frozenset(dim for edit in self.edits for dim in edit.dims)

    def shape_of(self, shape: Shape) -> Shape:
        """The shape that is left."""
        for edit in self.edits:
            shape = edit.shape_of(shape)
        return shape

    def of(self, tensor: Tensor, contents: bool = True) -> Tensor:
        """A new tensor; zeros of its shape without ``contents``."""
        if tensor.is_meta or not contents:
            return torch.zeros(self.shape_of(tuple(tensor.shape)), dtype=tensor.dtype, device=tensor.device)
        for edit in self.edits:
            tensor = edit.of(tensor)
        return tensor if self.edits else tensor.clone()

    def of_gradient(self, gradient: Tensor) -> Tensor:
        """As `TensorEdit.of_gradient`."""
        for edit in self.edits:
            gradient = edit.of_gradient(gradient)
        return gradient

    def of_state(self, state: Tensor, dims: Mapping[int, int], power: Callable[[], int]) -> Tensor:
        """As `TensorEdit.of_state`."""
        for edit in self.edits:
            state = edit.of_state(state, dims, power)
        return state

    def zero_(self, tensor: Tensor) -> None:
        """As `TensorEdit.zero_`."""
        for edit in self.edits:
            edit.zero_(tensor)


_KINDS: dict[str, type[Edit]] = {}


def register_edit(kind: E) -> E:
    """Let plans read edits of a class from files, by its `Edit.kind`.

    Raises:
        ValueError: another class has that name.
    """
    if _KINDS.get(kind.kind, kind) is not kind:
        raise ValueError(f"two kinds of edit have the name {kind.kind!r}: {_KINDS[kind.kind]} and {kind}")
    _KINDS[kind.kind] = kind
    return kind


def edit_to_data(edit: Edit) -> dict[str, Any]:
    """An edit as JSON has it: its kind under ``edit``, and its content."""
    return {"edit": edit.kind, **edit.to_data()}


def edit_from_data(data: Mapping[str, Any]) -> Edit:
    """What `edit_to_data` gave.

    Raises:
        PlanError: its kind is not known here.
        KeyError, TypeError, ValueError: it is something else.
    """
    kind = data["edit"]
    if kind not in _KINDS:
        raise PlanError(
            f"The plan has an edit of the kind {kind!r}, and this niwaki knows {', '.join(sorted(_KINDS))}. Use the "
            "niwaki version that wrote it, or import the package that defines this kind first."
        )
    return _KINDS[kind].from_data(data)


def edited_by_hand(what: str) -> PlanError:
    """The error of a plan that contradicts itself or its network."""
    return PlanError(f"The plan {what}. It has been damaged or edited by hand: make it again.")
