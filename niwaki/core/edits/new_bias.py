"""Layers that get a bias which they did not have: it takes up what their lost inputs gave on average."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.edits.base import (
    Edit,
    ModuleEdit,
    NewParameter,
    ReplacingEdit,
    Shape,
    TensorEdit,
    edited_by_hand,
    register_edit,
)
from niwaki.core.edits.keep import Keep
from niwaki.core.positions import Positions
from niwaki.core.renaming import Renaming
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_KINDS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


@final
@register_edit
@dataclass(frozen=True, slots=True)
class NewBias(ReplacingEdit):
    """A linear layer or convolution without a bias gets one.

    ``module``: the layer. ``rows``: its outputs that stay, in the dense layer's numbers; ``value``: the bias of each.
    ``dim``: of the weight, that of the outputs.

    In the masked network the values are added to what the layer returns, and nothing to the outputs that leave.
    """

    kind: ClassVar[str] = "new bias"

    module: str
    rows: Sequence[int]
    value: tuple[float, ...]
    dim: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.rows, Positions):
            object.__setattr__(self, "rows", Positions(self.rows))

    @property
    def weight(self) -> str:
        """The name of the layer's weight."""
        return f"{self.module}.weight"

    @property
    def bias(self) -> str:
        """The name of the new parameter."""
        return f"{self.module}.bias"

    def check(self, plan: Plan) -> None:
        dense = plan.dense.get(self.weight)
        if dense is None or self.dim >= len(dense) or self.bias in plan.dense:
            raise edited_by_hand(f"gives {self.module!r} a bias, which is no layer without one")
        if list(self.rows) != list(self._kept(plan)) or len(self.value) != len(self.rows):
            raise edited_by_hand(f"gives {self.module!r} a bias of other outputs than it keeps")
        if not np.isfinite(self.value).all():
            raise edited_by_hand(f"gives {self.module!r} a bias that is not finite")

    def _kept(self, plan: Plan) -> Sequence[int]:
        keep = plan.at.get(("keep", self.weight, self.dim))
        return keep.kept if isinstance(keep, Keep) else range(plan.dense[self.weight][self.dim])

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        layer = modules.get(self.module)
        if layer is None or not can_have_bias(layer):
            kind = "there is no such module" if layer is None else f"a {type(layer).__qualname__} cannot have a new one"
            raise edited_by_hand(f"gives {self.module!r} a bias: {kind}")

    def replacement(self, old: nn.Module) -> nn.Module:
        """The same layer."""
        weight = old._parameters["weight"]
        assert weight is not None
        value = torch.tensor(self.value, dtype=weight.dtype, device=weight.device)
        old._parameters["bias"] = nn.Parameter(value, requires_grad=weight.requires_grad)
        return old

    def parts(self) -> Mapping[str, NewParameter]:
        return {"bias": NewParameter("weight", lambda weight: weight.new_tensor(self.value), False)}

    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        shapes[self.bias] = (len(self.value),)

    @property
    def moved(self) -> Mapping[str, str | None]:
        return {}

    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        layer = modules[self.module]
        weight = layer._parameters["weight"]
        assert weight is not None
        value = torch.zeros(weight.shape[self.dim], dtype=torch.float64)
        value[torch.tensor(np.asarray(self.rows))] = torch.tensor(self.value, dtype=torch.float64)
        shape = (-1,) if isinstance(layer, nn.Linear) else (-1, *(1 for _ in weight.shape[2:]))
        return layer.register_forward_hook(_Adds(value.reshape(shape)), prepend=True).remove

    def before(self, done: Plan) -> Self:
        return replace(self, rows=Positions(np.asarray(self._kept(done))[np.asarray(self.rows)]))

    def joined(self, later: Iterable[Edit]) -> tuple[Self, list[Edit]]:
        """Outputs that leave later leave the bias."""
        stays, others = np.arange(len(self.value)), list[Edit]()
        for edit in later:
            gone = isinstance(edit, ModuleEdit) and Renaming(edit.moved).after(self.bias) is None
            if gone or (isinstance(edit, ReplacingEdit) and edit.module == self.module):
                raise PlanError(
                    f"The plan takes {self.module!r} away, which has got a bias already: {edit}. Make one plan of "
                    "both, from the search space of the dense network."
                )
            if isinstance(edit, TensorEdit) and edit.tensor == self.bias:
                if not isinstance(edit, Keep):
                    raise PlanError(
                        f"The plan changes the bias that {self.module!r} has got: {edit}. Make one plan of both, from "
                        "the search space of the dense network."
                    )
                stays = np.asarray(edit.kept)
            else:
                others.append(edit)
        rows, value = np.asarray(self.rows)[stays], tuple(self.value[position] for position in stays)
        return replace(self, rows=Positions(rows), value=value), others

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        one = first or whole
        assert one is not None
        here = np.asarray(one._kept(done))
        if first is None:
            if not np.isin(np.asarray(one.rows), here).all():
                raise PlanError(
                    f"The plan keeps outputs of {one.module!r} that have left this model already. What has left cannot "
                    "come back: use a plan that removes at least what the model was shrunk by."
                )
            return replace(one, rows=Positions(np.searchsorted(here, np.asarray(one.rows))))
        if first == whole:
            return None
        raise PlanError(
            f"The plan wants another bias of {one.module!r} than it has got, and is for the dense network. Make it "
            "from the search space of the network as it is now."
        )

    def to_data(self) -> dict[str, Any]:
        return {"module": self.module, "rows": list(self.rows), "value": list(self.value), "dim": self.dim}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        value = tuple(map(float, data["value"]))
        return cls(str(data["module"]), Positions.from_json(data["rows"]), value, int(data["dim"]))

    def __str__(self) -> str:
        return f"{self.module} gets a bias for {len(self.value)} outputs"


def can_have_bias(layer: nn.Module) -> bool:
    """Whether ``layer`` has no bias and would add one: a linear layer or convolution with torch's own code."""
    own = next((kind for kind in _KINDS if isinstance(layer, kind)), None)
    if own is None or "forward" in vars(layer) or type(layer).forward is not own.forward:
        return False
    grouped = isinstance(layer, _TRANSPOSED) and layer.groups > 1  # whose outputs are no dimension of the weight
    return not grouped and "bias" in layer._parameters and layer._parameters["bias"] is None


def output_dim(layer: nn.Module) -> int:
    """The dimension of the weight that is the outputs'."""
    return 1 if isinstance(layer, _TRANSPOSED) else 0


@dataclass(frozen=True, slots=True, eq=False)
class _Adds:
    """A forward hook that adds the same values at every position."""

    value: Tensor

    def __call__(self, module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return result + self.value.to(result)
