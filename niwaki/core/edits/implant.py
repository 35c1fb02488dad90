"""Units that a cut does not remove but makes cheaper: rows of a layer whose weights become small ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.counts import IntArray
from niwaki.core.edits.base import (
    Edit,
    ModuleEdit,
    NewParameter,
    ReplacingEdit,
    Shape,
    edited_by_hand,
    register_edit,
)
from niwaki.core.edits.keep import Keep
from niwaki.core.implanted import Implanted
from niwaki.core.positions import Positions, whole_number
from niwaki.core.renaming import Renaming
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan

CONVOLUTIONS: Mapping[type[nn.Module], int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Implant(ReplacingEdit):
    """Rows of the weight of one layer become cheaper. Outputs keep their order.

    ``module``: the layer. ``kept``: the rows of its weight that stay, ``slim``: those among them that become cheaper,
    in the dense weight's numbers. ``shape``: of the weight after the cut, before that. ``bias``: if there is one.
    ``rank``: None for a convolution, whose slim rows keep the centre of their kernel; else the rank of all slim rows
    of a linear layer together, which become the product of two matrices, the best of that rank.

    In the masked network slim rows have these values in the dense shape: zeros around the centre, or the product.
    """

    kind: ClassVar[str] = "implant"

    module: str
    kept: Sequence[int]
    slim: Sequence[int]
    shape: Shape
    bias: bool
    rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("kept", "slim"):
            if not isinstance(getattr(self, name), Positions):
                object.__setattr__(self, name, Positions(getattr(self, name)))

    @property
    def weight(self) -> str:
        """The name of the weight in the dense network."""
        return f"{self.module}.weight"

    @property
    def saved_share(self) -> float:
        """The fraction of the parameters of the cut weight that the slim rows do without, and of its
        multiply-accumulates."""
        rows, *others = self.shape
        each = int(np.prod(others))
        if self.rank is None:
            return (each - each // int(np.prod(others[1:]))) * len(self.slim) / (rows * each)
        return (len(self.slim) * each - self.rank * (len(self.slim) + each)) / (rows * each)

    def check(self, plan: Plan) -> None:
        dense = plan.dense.get(self.weight)
        if dense is None:
            raise edited_by_hand(f"implants into {self.module!r}, which the network it is for does not have")
        keep = plan.at.get(("keep", self.weight, 0))
        stays = Positions(range(dense[0])) if not isinstance(keep, Keep) else keep.kept
        kept, slim = Positions.of(self.kept), Positions.of(self.slim)
        if list(kept) != list(stays) or self.shape != plan.change_of(self.weight).shape_of(dense):
            raise edited_by_hand(f"implants into other rows of {self.weight!r} than it keeps")
        if not slim.ascending or not 0 < len(slim) < len(kept) or not np.isin(np.asarray(slim), np.asarray(kept)).all():
            raise edited_by_hand(f"implants rows of {self.weight!r} that are not an ascending choice of some it keeps")
        if self.rank is None and (len(dense) < 3 or any(size % 2 == 0 for size in dense[2:])):
            raise edited_by_hand(f"takes the centre of {self.weight!r}, whose shape {list(dense)} has none")
        if self.rank is not None and (len(dense) != 2 or self.rank < 1):
            raise edited_by_hand(f"makes rows of {self.weight!r} of rank {self.rank}, and it is not a matrix")

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        why = why_not_replaceable(modules.get(self.module), self.rank)
        if why is not None:
            raise edited_by_hand(f"implants into {self.module!r}: {why}")

    def parts(self) -> Mapping[str, NewParameter]:
        whole, slim = (_chooser(rows) for rows in self._rows())
        found = {"whole.weight": NewParameter("weight", whole, True)}
        if self.rank is None:
            found["slim.weight"] = NewParameter("weight", lambda weight: centre(slim(weight)).clone(), True)
        else:
            rank = self.rank
            found["slim.0.weight"] = NewParameter("weight", lambda weight: factors(slim(weight), rank)[1], False)
            found["slim.1.weight"] = NewParameter("weight", lambda weight: factors(slim(weight), rank)[0], False)
        if self.bias:
            found["whole.bias"] = NewParameter("bias", whole, True)
            found["slim.bias" if self.rank is None else "slim.1.bias"] = NewParameter("bias", slim, True)
        return found

    def _rows(self) -> tuple[IntArray, IntArray]:
        """The rows of the cut weight that stay whole, and the slim ones."""
        slim = np.isin(np.asarray(self.kept), np.asarray(self.slim))
        return np.flatnonzero(~slim), np.flatnonzero(slim)

    def replacement(self, old: nn.Module) -> nn.Module:
        given: dict[str, nn.Parameter] = {}
        for name, part in self.parts().items():
            dense = old._parameters[part.old]
            assert dense is not None
            given[name] = nn.Parameter(part.of(dense.detach()), requires_grad=dense.requires_grad)
        whole, slim = self._rows()
        is_slim = np.isin(np.asarray(self.kept), np.asarray(self.slim)).tolist()
        if self.rank is not None:
            inputs = self.shape[1]
            return Implanted.of(
                _filled(nn.Linear(inputs, len(whole), self.bias, device="meta"), given, "whole"),
                nn.Sequential(
                    _filled(nn.Linear(inputs, self.rank, False, device="meta"), given, "slim.0"),
                    _filled(nn.Linear(self.rank, len(slim), self.bias, device="meta"), given, "slim.1"),
                ),
                is_slim,
                -1,
            )
        inputs, kind, dims = self.shape[1], type(old), CONVOLUTIONS[type(old)]
        how = {name: getattr(old, name) for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
        first = kind(inputs, len(whole), bias=self.bias, device="meta", **how)
        second = kind(inputs, len(slim), 1, old.stride, bias=self.bias, device="meta")
        return Implanted.of(_filled(first, given, "whole"), _filled(second, given, "slim"), is_slim, -1 - dims)

    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        whole, slim = (len(rows) for rows in self._rows())
        inputs, kernel = self.shape[1], self.shape[2:]
        own = {"whole.weight": (whole, inputs, *kernel)}
        if self.rank is None:
            own["slim.weight"] = (slim, inputs, *(1 for _ in kernel))
        else:
            own |= {"slim.0.weight": (self.rank, inputs), "slim.1.weight": (slim, self.rank)}
        if self.bias:
            own |= {"whole.bias": (whole,), "slim.bias" if self.rank is None else "slim.1.bias": (slim,)}
        shapes |= {f"{self.module}.{name}": shape for name, shape in own.items()}

    @property
    def moved(self) -> Mapping[str, str | None]:
        return dict.fromkeys((self.weight, *((f"{self.module}.bias",) if self.bias else ())))

    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        weight = modules[self.module]._parameters["weight"]
        assert weight is not None
        before, rows = weight.data, torch.tensor(np.asarray(self.slim)).to(weight.device)
        after, slim = before.clone(), before.index_select(0, rows)
        if self.rank is None:
            expanded = torch.zeros_like(slim)
            centre(expanded).copy_(centre(slim))
        else:
            left, right = factors(slim, self.rank)
            expanded = left @ right
        after.index_copy_(0, rows, expanded)
        weight.data = after

        def unmask() -> None:
            weight.data = before

        return unmask

    def before(self, done: Plan) -> Self:
        keep = done.at.get(("keep", self.weight, 0))
        if not isinstance(keep, Keep):
            return self
        rows = np.asarray(keep.kept)
        return replace(self, kept=Positions(rows[np.asarray(self.kept)]), slim=Positions(rows[np.asarray(self.slim)]))

    def joined(self, later: Iterable[Edit]) -> tuple[Self, list[Edit]]:
        """Rows of its layers that leave later leave the dense weight; numbers of its modules are its own."""
        later = list(later)
        kept = {(edit.tensor, edit.dim): edit.kept for edit in later if isinstance(edit, Keep)}
        others = [other for edit in later if (other := self._outside(edit)) is not None]
        inputs = kept.get((f"{self.module}.whole.weight", 1))
        second = "slim.weight" if self.rank is None else "slim.1.weight"
        stays = np.zeros(len(self.kept), dtype=bool)
        for rows, name in zip(self._rows(), ("whole.weight", second), strict=True):
            which = kept.get((f"{self.module}.{name}", 0))
            stays[rows if which is None else rows[np.asarray(which)]] = True
        ranks = kept.get((f"{self.module}.slim.0.weight", 0))
        rank = self.rank if ranks is None else len(ranks)
        made: list[Edit] = []
        if not stays.all():
            left = Positions(np.flatnonzero(stays))
            made += [Keep(name, 0, left) for name in self.moved]
        if inputs is not None:
            made.append(Keep(self.weight, 1, inputs))
        alive = np.asarray(self.kept)[stays]
        shape = (len(alive), self.shape[1] if inputs is None else len(inputs), *self.shape[2:])
        slim = np.intersect1d(np.asarray(self.slim), alive)
        return replace(self, kept=Positions(alive), slim=Positions(slim), shape=shape, rank=rank), [*others, *made]

    def _outside(self, edit: Edit) -> Edit | None:
        """What an edit of the network with the new layer does to all others."""
        own = f"{self.module}."
        if isinstance(edit, Implant) and edit.module.startswith(own):
            raise PlanError(
                f"The plan implants into {edit.module!r}, which is a part of an implanted layer already. Choose all "
                "implants of a layer at once, from the search space of the dense network."
            )
        if isinstance(edit, ModuleEdit) and Renaming(edit.moved).after(f"{own}whole.weight") is None:
            raise PlanError(
                f"The plan erases {self.module!r}, which has implants: {edit}. Erase it by the plan that implants, "
                "from the search space of the dense network."
            )
        return edit.renamed(lambda name: None if name == self.module or name.startswith(own) else name)

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is None:
            assert whole is not None
            keep = done.at.get(("keep", whole.weight, 0))
            here = np.asarray(keep.kept) if isinstance(keep, Keep) else np.arange(done.dense[whole.weight][0])
            if not np.isin(np.asarray(whole.kept), here).all():
                raise PlanError(
                    f"The plan keeps rows of {whole.weight!r} that have left this model already. What has left cannot "
                    "come back: use a plan that removes at least what the model was shrunk by."
                )
            return replace(
                whole,
                kept=Positions(np.searchsorted(here, np.asarray(whole.kept))),
                slim=Positions(np.searchsorted(here, np.asarray(whole.slim))),
            )
        if whole == first and all(
            done.at.get(("keep", first.weight, dim)) == plan.at.get(("keep", first.weight, dim)) for dim in (0, 1)
        ):
            return None
        raise PlanError(
            f"The plan wants something else of {first.module!r} than what has been implanted there, and is for the "
            "dense network. Make it from the search space of the network as it is now."
        )

    def to_data(self) -> dict[str, Any]:
        return {
            "module": self.module,
            "kept": list(self.kept),
            "slim": list(self.slim),
            "shape": list(self.shape),
            "bias": self.bias,
            "rank": self.rank,
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(
            str(data["module"]),
            Positions.from_json(data["kept"]),
            Positions.from_json(data["slim"]),
            tuple(map(whole_number, data["shape"])),
            bool(data["bias"]),
            None if data["rank"] is None else whole_number(data["rank"]),
        )

    def __str__(self) -> str:
        how = "by the centre of their kernel" if self.rank is None else f"by two factors of rank {self.rank}"
        return f"{self.module} computes {len(self.slim)} of {len(self.kept)} outputs {how}"


def why_not_replaceable(layer: nn.Module | None, rank: int | None) -> str | None:
    """Why a layer cannot have implants; None if it can."""
    if layer is None:
        return "there is no such module"
    kind, convolution = type(layer), rank is None
    if (convolution and kind not in CONVOLUTIONS) or (not convolution and kind is not nn.Linear):
        return f"a {kind.__qualname__} cannot have implants, a {'convolution' if convolution else 'linear layer'} can"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks:
        return "hooks on it would be lost"
    if not convolution:
        return None
    if layer.groups != 1:
        return f"it has groups={layer.groups}, and only convolutions with groups=1 can have implants"
    kernel: tuple[int, ...] = layer.kernel_size  # type: ignore[assignment]
    dilation: tuple[int, ...] = layer.dilation  # type: ignore[assignment]
    if any(size % 2 == 0 for size in kernel):
        return f"its kernel {kernel} has no centre, since a size is even"
    if layer.padding == "same":
        return None
    centred = tuple(d * (k - 1) // 2 for d, k in zip(dilation, kernel, strict=True))
    padding = (0,) * len(kernel) if layer.padding == "valid" else layer.padding
    if padding != centred:
        return f"its padding {padding} is not half of its kernel, {centred}, so that a 1x1 kernel has other outputs"
    return None


def _chooser(rows: IntArray) -> Callable[[Tensor], Tensor]:
    return lambda tensor: tensor.index_select(0, torch.tensor(rows, device=tensor.device))


def centre(weight: Tensor) -> Tensor:
    """The middle entry of each kernel: a view [rows, inputs, 1, ...] of [rows, inputs, k, ...]."""
    for dim in range(2, weight.dim()):
        weight = weight.narrow(dim, weight.shape[dim] // 2, 1)
    return weight


def factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best two matrices [rows, rank] and [rank, inputs] whose product is near ``weight``, of equal lengths."""
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    if wide.is_meta:
        return weight.new_empty(weight.shape[0], rank), weight.new_empty(rank, weight.shape[1])
    left, values, right = torch.linalg.svd(wide, full_matrices=False)
    there = min(rank, len(values))
    root = values[:there].sqrt()
    first, second = wide.new_zeros(weight.shape[0], rank), wide.new_zeros(rank, weight.shape[1])
    nothing = root <= torch.finfo(wide.dtype).eps * root.max().clamp(min=torch.finfo(wide.dtype).tiny)
    first[:, :there] = left[:, :there] * root.where(~nothing, 0)
    second[:there] = right[:there] * root.where(~nothing, 1)[:, None]  # where both were zero, none would ever learn
    return first.to(weight.dtype), second.to(weight.dtype)


def _filled(layer: nn.Module, given: Mapping[str, nn.Parameter], prefix: str) -> nn.Module:
    """``layer`` with the parameters that are ``given`` for it."""
    for name in [name for name, value in layer._parameters.items() if value is not None]:
        layer._parameters[name] = given[f"{prefix}.{name}"]
    return layer
