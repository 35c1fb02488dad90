"""Structures that leave a network of modules: whole layers go, and what living code still calls becomes absent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

from torch import Tensor, nn

from niwaki.core.absent import Absent, Result, result_from_data
from niwaki.core.edits.base import (
    Factor,
    GatedEdit,
    Place,
    Shape,
    closed,
    edited_by_hand,
    nothing_to_mask,
    register_edit,
)
from niwaki.core.positions import whole_number
from niwaki.core.renaming import Renaming
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan

_SHOWN = 3


@final
@register_edit
@dataclass(frozen=True, slots=True)
class EraseModules(GatedEdit):
    """Structures that are erased from the modules of a network.

    ``structures``: their names. ``absent``: modules that return zeros from now on, by path, in the form of what they
    returned. ``entries``: whole entries of lists of modules that are deleted; ``renumbered``: those that then have
    another number, with it. ``unset``: parameters that modules that live have no more. ``numbers``: attributes that
    number layers, as (path of the module, name), with their new value. ``gated``: modules whose result is a structure
    that no parameters make, so that only a gate makes it zero before. ``layers``: what is handed on where whole layers
    are left out, by path, which is inexact: no zeros make a network without them.
    """

    kind: ClassVar[str] = "erase modules"

    structures: tuple[str, ...]
    absent: Mapping[str, Result] = field(default_factory=dict, hash=False)
    entries: tuple[str, ...] = ()
    renumbered: Mapping[str, str] = field(default_factory=dict, hash=False)
    unset: tuple[str, ...] = ()
    numbers: Mapping[tuple[str, str], int] = field(default_factory=dict, hash=False)
    gated: tuple[str, ...] = ()
    layers: Mapping[str, Result] = field(default_factory=dict, hash=False)

    @property
    def place(self) -> Place:
        return ("erase",)

    @property
    def for_graph(self) -> bool | None:
        return False

    @property
    def _paths(self) -> tuple[str, ...]:
        """The modules whose tensors go."""
        return (*self.absent, *self.entries)

    def check(self, plan: Plan) -> None:
        for path in self.entries:
            if not any(name.startswith(f"{path}.") for name in plan.dense):
                raise edited_by_hand(f"erases a module {path!r}, of which the network it is for has no tensor")
        for name in self.unset:
            if name not in plan.dense:
                raise edited_by_hand(f"erases a tensor {name!r}, which the network it is for does not have")

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        for path in chain(self._paths, self.renumbered, (path for path, _ in self.numbers), self.gated, self.layers):
            if path not in modules:
                raise edited_by_hand(f"erases {self}, and the model has no module {path!r}")
        for path in (*self.entries, *self.renumbered):
            outer = modules.get(path.rpartition(".")[0])
            if not isinstance(outer, (nn.ModuleList, nn.Sequential)):
                raise edited_by_hand(f"deletes {path!r}, which is not an entry of a list of modules")

    def apply(self, modules: Mapping[str, nn.Module]) -> None:
        def length(dims: tuple[tuple[str, int], ...]) -> int:
            names = Renaming(self.moved)
            for tensor, dim in dims:
                path, _, leaf = tensor.rpartition(".")
                found = modules[path]._parameters.get(leaf) if path in modules else None
                if found is not None and names.after(tensor) is not None:
                    return found.shape[dim]
            raise PlanError(
                f"The plan erases {self}, and all from which the size of its zeros follows. Erase fewer structures, or "
                "use as_graph=True."
            )

        taken: dict[int, nn.Module] = {}
        for path, result in self.absent.items():
            absent = taken[id(modules[path])] = Absent(result.fixed(length))
            absent.train(modules[path].training)
        for holder in modules[""].modules():
            for name, child in holder._modules.items():
                if id(child) in taken:
                    holder._modules[name] = taken[id(child)]
        for (path, name), value in self.numbers.items():
            modules[path].__dict__[name] = value
        for tensor in self.unset:
            path, _, leaf = tensor.rpartition(".")
            modules[path]._parameters[leaf] = None
        for path in dict.fromkeys(entry.rpartition(".")[0] for entry in self.entries):
            _delete(modules[path], path, set(self.entries), self.renumbered)

    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        """Modules that come instead have no tensors."""

    @property
    def moved(self) -> Mapping[str, str | None]:
        return {**dict.fromkeys((*self._paths, *self.unset)), **self.renumbered}

    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        """What makes the other terms is zero by then, and so are they. Whole layers hand on what they are given."""
        handles = [
            modules[path].register_forward_hook(_HandsOn(result), with_kwargs=True)
            for path, result in self.layers.items()
        ]
        opening = self.gate(modules, closed) if self.is_gated else nothing_to_mask

        def unmask() -> None:
            opening()
            for handle in handles:
                handle.remove()

        return unmask

    @property
    def is_gated(self) -> bool:
        return bool(self.gated)

    def gate(self, modules: Mapping[str, nn.Module], factor: Factor) -> Callable[[], None]:
        handles = [modules[path].register_forward_hook(_Behind(factor)) for path in self.gated]

        def ungate() -> None:
            for handle in handles:
                handle.remove()

        return ungate

    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        if first is None or later is None:
            return first or later
        entries = (*first.entries, *later.entries)
        return cls(
            (*first.structures, *later.structures),
            _outside({**first.absent, **later.absent}, entries),
            tuple(_outside(dict.fromkeys(entries), entries)),
            _outside({**first.renumbered, **later.renumbered}, entries),
            tuple(_outside(dict.fromkeys((*first.unset, *later.unset)), entries)),
            {key: value for key, value in {**first.numbers, **later.numbers}.items() if not _within(key[0], entries)},
            tuple(dict.fromkeys((*first.gated, *later.gated))),
            {**first.layers, **later.layers},
        )

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is None:
            return whole
        back = set(first.structures) - set(() if whole is None else whole.structures)
        if back:
            raise PlanError(
                f"The plan keeps the structure {min(back)!r}, which has left this network already. What has left "
                "cannot come back: use a plan that erases at least what has been erased."
            )
        assert whole is not None
        names = tuple(name for name in whole.structures if name not in first.structures)
        if not names:
            return None
        gone = set(first.entries)
        return cls(
            names,
            {path: result for path, result in whole.absent.items() if path not in first.absent},
            tuple(path for path in whole.entries if path not in gone),
            whole.renumbered,
            tuple(name for name in whole.unset if name not in first.unset),
            {key: value for key, value in whole.numbers.items() if first.numbers.get(key) != value},
            tuple(path for path in whole.gated if path not in first.gated),
            {path: result for path, result in whole.layers.items() if path not in first.layers},
        )

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        now = {path: new for path in (*self._paths, *self.unset) if (new := name(path)) is not None}
        moved = {new: number for path, number in self.renumbered.items() if (new := name(path)) is not None}
        return type(self)(
            self.structures,
            {now[path]: result.renamed(name) for path, result in self.absent.items() if path in now},
            tuple(now[path] for path in self.entries if path in now),
            {path: number for path, number in moved.items() if path.rpartition(".")[2] != number},
            tuple(now[path] for path in self.unset if path in now),
            {(new, key): value for (path, key), value in self.numbers.items() if (new := name(path)) is not None},
            tuple(new for path in self.gated if (new := name(path)) is not None),
            {new: result.renamed(name) for path, result in self.layers.items() if (new := name(path)) is not None},
        )

    def to_data(self) -> dict[str, Any]:
        return {
            "structures": list(self.structures),
            "absent": {path: result.to_data() for path, result in self.absent.items()},
            "entries": list(self.entries),
            "renumbered": dict(self.renumbered),
            "unset": list(self.unset),
            "numbers": [[path, name, value] for (path, name), value in self.numbers.items()],
            "gated": list(self.gated),
            "layers": {path: result.to_data() for path, result in self.layers.items()},
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            tuple(map(str, data["structures"])),
            {str(path): result_from_data(result) for path, result in data["absent"].items()},
            tuple(map(str, data["entries"])),
            {str(path): str(number) for path, number in data["renumbered"].items()},
            tuple(map(str, data["unset"])),
            {(str(path), str(name)): whole_number(value) for path, name, value in data["numbers"]},
            tuple(map(str, data.get("gated", ()))),
            {str(path): result_from_data(result) for path, result in data.get("layers", {}).items()},
        )

    def __str__(self) -> str:
        more = f" and {len(self.structures) - _SHOWN} more" if len(self.structures) > _SHOWN else ""
        return f"{', '.join(self.structures[:_SHOWN])}{more}{' (inexact)' * bool(self.layers)}"


@dataclass(frozen=True, slots=True, eq=False)
class _HandsOn:
    """A forward hook that returns ``result`` instead."""

    result: Result

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], result: Any) -> Any:
        return self.result.of(args, kwargs)


@dataclass(frozen=True, slots=True, eq=False)
class _Behind:
    """A forward hook that hands on what ``factor`` makes of the result."""

    factor: Factor

    def __call__(self, module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return self.factor(result)


def _delete(container: nn.Module, path: str, entries: set[str], renumbered: Mapping[str, str]) -> None:
    """Take entries out of a list of modules, and give the others their numbers."""
    prefix = f"{path}." if path else ""
    stays = {
        renumbered.get(prefix + key, key): child
        for key, child in container._modules.items()
        if prefix + key not in entries
    }
    container._modules.clear()
    container._modules.update(stays)


def _within(path: str, entries: Iterable[str]) -> bool:
    return any(path.startswith(f"{entry}.") for entry in entries)


def _outside(found: dict[str, Any], entries: tuple[str, ...]) -> dict[str, Any]:
    return {path: value for path, value in found.items() if not _within(path, entries)}
