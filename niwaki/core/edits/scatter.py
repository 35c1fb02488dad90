"""Branches that write some channels of a stream only: the last layer of each puts its outputs into their places."""

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
    register_edit,
)
from niwaki.core.edits.keep import Keep
from niwaki.core.edits.numbers import SetAttribute
from niwaki.core.positions import whole_number
from niwaki.core.renaming import Renaming
from niwaki.core.scattered import Scattered
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Scatter(ReplacingEdit):
    """The outputs of a layer, of which only some stay, become channels of a stream that has more.

    ``module``: the layer. ``runs`` of its outputs take turns with ``gaps`` of zeros, see `Scattered`, along dimension
    ``dim`` of its result. ``tensors``: its parameters and buffers with their shapes after the cut, by name.

    In the masked network these channels are zero: `Keep` says which.
    """

    kind: ClassVar[str] = "scatter"

    module: str
    runs: tuple[int, ...]
    gaps: tuple[int, ...]
    dim: int
    tensors: tuple[tuple[str, Shape], ...]

    def check(self, plan: Plan) -> None:
        for name, shape in self.tensors:
            full = f"{self.module}.{name}"
            if full not in plan.dense or plan.change_of(full).shape_of(plan.dense[full]) != shape:
                raise edited_by_hand(f"scatters the outputs of {self.module!r}, whose {name!r} has another shape")
        outputs = next((shape[0] for name, shape in self.tensors if name == "weight"), sum(self.runs))
        if (
            len(self.runs) != len(self.gaps)
            or outputs != sum(self.runs)
            or min((*self.runs, *self.gaps), default=-1) < 0
        ):
            raise edited_by_hand(f"scatters other outputs of {self.module!r} than it keeps")
        if ("implant", self.module) in plan.at:
            raise edited_by_hand(f"implants into {self.module!r} and scatters its outputs, which cannot be both")

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        if self.module not in modules:
            raise edited_by_hand(f"scatters the outputs of {self.module!r}, and there is no such module")

    def replacement(self, old: nn.Module) -> nn.Module:
        return Scattered(old, self.runs, self.gaps, self.dim)

    def parts(self) -> Mapping[str, NewParameter]:
        return {}  # they are the same objects

    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        shapes |= {f"{self.module}.layer.{name}": shape for name, shape in self.tensors}

    @property
    def moved(self) -> Mapping[str, str | None]:
        return dict.fromkeys(f"{self.module}.{name}" for name, _ in self.tensors)

    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        return nothing_to_mask

    def before(self, done: Plan) -> Self:
        return self

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
                    f"The plan erases {self.module!r}, whose outputs are scattered: {edit}. Erase it by the first plan,"
                    " from the search space of the dense network."
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
            f"The plan wants something else of {first.module!r}, whose outputs are scattered already, and is for the "
            "dense network. Make it from the search space of the network as it is now."
        )

    def to_data(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "runs": list(self.runs),
            "gaps": list(self.gaps),
            "dim": self.dim,
            "tensors": [[name, list(shape)] for name, shape in self.tensors],
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            str(data["module"]),
            tuple(map(whole_number, data["runs"])),
            tuple(map(whole_number, data["gaps"])),
            int(data["dim"]),
            tuple((str(name), tuple(map(whole_number, shape))) for name, shape in data["tensors"]),
        )

    def __str__(self) -> str:
        outputs, zeros = sum(self.runs), sum(self.gaps)
        return f"{self.module} writes {outputs} of {outputs + zeros} channels"
