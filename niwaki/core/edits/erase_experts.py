"""Experts that leave a network of modules: their rows are cut by other edits, their modules go, and no router chooses
them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
from torch import nn

from niwaki.core.edits.base import ModuleEdit, Place, Shape, edited_by_hand, nothing_to_mask, register_edit
from niwaki.core.masked_logits import mask_logits, show_logits
from niwaki.core.positions import Positions, whole_number
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


@dataclass(frozen=True, slots=True)
class ExpertList:
    """The list or dictionary of modules (or list of parameters) at ``path``, whose entries, under ``keys``, are one
    expert each. Those that stay get the first keys, in their order. A dictionary may have others, without tensors."""

    path: str
    keys: tuple[str, ...]

    @classmethod
    def of(cls, path: str, module: nn.Module) -> Self | None:
        """The list that a module is; None if it is not one."""
        entries = _entries_of(module)
        if entries is None:
            return None
        named = isinstance(module, nn.ModuleDict)
        return cls(path, tuple(key for key, entry in entries.items() if not named or _has_tensors(entry)))

    def fits(self, entries: Mapping[str, Any] | None) -> bool:
        """Whether these are the entries of the list."""
        return entries is not None and tuple(key for key in entries if key in self.keys) == self.keys


def _has_tensors(module: nn.Module) -> bool:
    return any(True for tensors in (module.parameters(), module.buffers()) for _ in tensors)


def _entries_of(module: nn.Module | None) -> dict[str, Any] | None:
    if isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict)):
        return module._modules
    return module._parameters if isinstance(module, nn.ParameterList) else None


@final
@register_edit
@dataclass(frozen=True, slots=True)
class EraseExperts(ModuleEdit):
    """Experts of one router that are erased.

    ``weight``: the router's weight; ``module``: the module that makes logits of it. Of ``experts`` experts those
    numbered ``kept`` stay, in ascending order. ``lists``: those with an entry for each expert.
    Rows of the weight, of its bias, and of weights that hold all experts are cut by `Keep`.

    In the masked network the logits of the others are minus infinity.
    """

    kind: ClassVar[str] = "erase experts"

    weight: str
    module: str
    experts: int
    kept: Sequence[int]
    lists: tuple[ExpertList, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.kept, Positions):
            object.__setattr__(self, "kept", Positions(self.kept))

    @property
    def place(self) -> Place:
        return "erase experts", self.weight

    @property
    def for_graph(self) -> bool | None:
        return False

    @property
    def _gone(self) -> list[int]:
        return sorted({*range(self.experts)} - {*self.kept})

    def check(self, plan: Plan) -> None:
        kept = Positions.of(self.kept)
        if not kept.ascending or not len(kept) or kept[-1] >= self.experts:
            raise edited_by_hand(f"keeps experts of {self.weight!r} that are not an ascending choice of {self.experts}")
        if self.experts not in plan.dense.get(self.weight, ()):
            raise edited_by_hand(f"erases experts of a router {self.weight!r} that the network it is for does not have")

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        owner, _, leaf = self.weight.rpartition(".")
        if self.module not in modules or owner not in modules or leaf not in modules[owner]._parameters:
            raise edited_by_hand(f"erases experts of {self.weight!r}, which the model does not have")
        for one in self.lists:
            entries = _entries_of(modules.get(one.path))
            if not one.fits(entries):
                raise edited_by_hand(f"erases experts from {one.path!r}, which is not a list of {self.experts}")

    def apply(self, modules: Mapping[str, nn.Module]) -> None:
        for one in self.lists:
            entries = _entries_of(modules[one.path])
            assert entries is not None
            stay = dict(zip(one.keys, [entries[one.keys[number]] for number in self.kept], strict=False))
            others = {key: entry for key, entry in entries.items() if key not in one.keys}
            entries.clear()
            entries.update({**stay, **others})
        owner, _, leaf = self.weight.rpartition(".")
        show_logits(modules[self.module], modules[owner], leaf)

    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        """Nothing comes instead."""

    @property
    def moved(self) -> Mapping[str, str | None]:
        found: dict[str, str | None] = {}
        for one in self.lists:
            new = {one.keys[old]: one.keys[number] for number, old in enumerate(self.kept)}
            found |= {f"{one.path}.{key}": new.get(key) for key in one.keys if new.get(key) != key}
        return found

    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        if not self._gone:
            return nothing_to_mask
        owner, _, leaf = self.weight.rpartition(".")
        return mask_logits(modules[self.module], modules[owner], leaf, self.experts, self._gone)

    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        if first is None or later is None:
            return first or later
        return replace(first, kept=Positions(np.asarray(first.kept)[np.asarray(later.kept)]))

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is None:
            return whole
        here = np.asarray(first.kept)
        stays = np.arange(first.experts) if whole is None else np.asarray(whole.kept)
        back = np.setdiff1d(stays, here)
        if len(back):
            raise PlanError(
                f"The plan keeps expert {int(back[0])} of the router {first.weight!r}, which has left this network "
                "already. What has left cannot come back: use a plan that erases at least what has been erased."
            )
        if whole is None or len(stays) == len(here):
            return None
        lists = tuple(replace(one, keys=one.keys[: len(here)]) for one in whole.lists)
        return replace(whole, experts=len(here), kept=Positions(np.searchsorted(here, stays)), lists=lists)

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        weight, module = name(self.weight), name(self.module) if self.module else ""
        lists = tuple(replace(one, path=now) for one in self.lists if (now := name(one.path)) is not None)
        if weight is None or module is None or len(lists) < len(self.lists):
            return None
        return replace(self, weight=weight, module=module, lists=lists)

    def to_data(self) -> dict[str, Any]:
        return {
            "weight": self.weight,
            "module": self.module,
            "experts": self.experts,
            "kept": list(self.kept),
            "lists": [[one.path, list(one.keys)] for one in self.lists],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            str(data["weight"]),
            str(data["module"]),
            whole_number(data["experts"]),
            Positions.from_json(data["kept"]),
            tuple(ExpertList(str(path), tuple(map(str, keys))) for path, keys in data["lists"]),
        )

    def __str__(self) -> str:
        return f"{self.weight} keeps {len(self.kept)} of {self.experts} experts"
