"""Layers that have some channels of a stream only: what writes them, and what reads them, alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

from torch import nn

from niwaki.core.edits.base import (
    Edit,
    ModuleEdit,
    NewParameter,
    ReplacingEdit,
    Shape,
    edited_by_hand,
    nothing_to_mask,
)
from niwaki.core.edits.keep import Keep
from niwaki.core.edits.numbers import SetAttribute
from niwaki.core.positions import whole_number
from niwaki.core.renaming import Renaming
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


@dataclass(frozen=True, slots=True)
class PlacedEdit(ReplacingEdit):
    """A layer has some channels of a stream, and stays inside of a module that knows their places.

    ``module``: the layer. ``runs`` of its channels take turns with ``gaps`` of others along dimension ``dim`` of what
    it returns, or of what it is given. ``tensors``: its parameters and buffers with their shapes after the cut, by
    name.
    """

    does: ClassVar[str]  # to the stream, in sentences
    weight_dim: ClassVar[int]  # of the weight, with these channels

    module: str
    runs: tuple[int, ...]
    gaps: tuple[int, ...]
    dim: int
    tensors: tuple[tuple[str, Shape], ...]

    @final
    def check(self, plan: Plan) -> None:
        for name, shape in self.tensors:
            full = f"{self.module}.{name}"
            if full not in plan.dense or plan.change_of(full).shape_of(plan.dense[full]) != shape:
                raise edited_by_hand(f"{self.does} of {self.module!r}, whose {name!r} has another shape")
        channels = next((shape[self.weight_dim] for name, shape in self.tensors if name == "weight"), sum(self.runs))
        if (
            len(self.runs) != len(self.gaps)
            or channels != sum(self.runs)
            or min((*self.runs, *self.gaps), default=-1) < 0
        ):
            raise edited_by_hand(f"{self.does} of {self.module!r} that are others than it keeps")
        others = [edit for edit in plan.edits if isinstance(edit, ReplacingEdit) and edit.module == self.module]
        if others != [self]:
            raise edited_by_hand(f"{self.does} of {self.module!r}, in whose place another edit puts a module, too")

    @final
    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        if self.module not in modules:
            raise edited_by_hand(f"{self.does} of {self.module!r}, and there is no such module")

    @final
    def parts(self) -> Mapping[str, NewParameter]:
        return {}  # they are the same objects

    @final
    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        shapes |= {f"{self.module}.layer.{name}": shape for name, shape in self.tensors}

    @final
    @property
    def moved(self) -> Mapping[str, str | None]:
        return dict.fromkeys(f"{self.module}.{name}" for name, _ in self.tensors)

    @final
    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        return nothing_to_mask

    @final
    def before(self, done: Plan) -> Self:
        return self

    @final
    def joined(self, later: Iterable[Edit]) -> tuple[Self, list[Edit]]:
        """What happens to the layer inside happens to the layer; runs and gaps become shorter."""
        inside, lengths, others = f"{self.module}.layer", {"runs": self.runs, "gaps": self.gaps}, list[Edit]()
        shapes = dict(self.tensors)

        def outside(name: str) -> str:
            return self.module + name[len(inside) :] if f"{name}.".startswith(f"{inside}.") else name

        for edit in later:
            if isinstance(edit, ReplacingEdit) and outside(edit.module) == self.module:
                raise PlanError(
                    f"The plan replaces {edit.module!r}, which is inside of what stands there already. Make one plan "
                    "of both, from the search space of the dense network."
                )
            if isinstance(edit, ModuleEdit) and Renaming(edit.moved).after(inside) is None:
                raise PlanError(
                    f"The plan erases {self.module!r}, which has channels of a stream of its own: {edit}. Erase it by "
                    "the first plan, from the search space of the dense network."
                )
            if isinstance(edit, SetAttribute) and edit.module == self.module:
                (place,) = edit.where
                own = list(lengths[edit.name])
                own[whole_number(place)] = edit.value
                lengths[edit.name] = tuple(own)
                continue
            now = edit.renamed(outside)
            if now is not None:
                others.append(now)
            if isinstance(now, Keep) and now.tensor.startswith(f"{self.module}."):
                name = now.tensor[len(self.module) + 1 :]
                shapes[name] = now.shape_of(shapes[name])
        return replace(self, runs=lengths["runs"], gaps=lengths["gaps"], tensors=tuple(shapes.items())), others

    @final
    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is None:
            return whole
        names = [f"{first.module}.{name}" for name, _ in first.tensors]
        if whole == first and all(
            done.at.get(("keep", name, dim)) == plan.at.get(("keep", name, dim)) for name in names for dim in (0, 1)
        ):
            return None
        raise PlanError(
            f"The plan wants something else of {first.module!r}, which has channels of a stream of its own already, "
            "and is for the dense network. Make it from the search space of the network as it is now."
        )

    @final
    def to_data(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "runs": list(self.runs),
            "gaps": list(self.gaps),
            "dim": self.dim,
            "tensors": [[name, list(shape)] for name, shape in self.tensors],
        }

    @final
    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            str(data["module"]),
            tuple(map(whole_number, data["runs"])),
            tuple(map(whole_number, data["gaps"])),
            int(data["dim"]),
            tuple((str(name), tuple(map(whole_number, shape))) for name, shape in data["tensors"]),
        )
