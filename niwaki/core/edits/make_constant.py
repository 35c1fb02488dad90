"""Modules that return a constant from now on: experts that are replaced by the mean of what they returned."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from niwaki.core.constant import Constant
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
from niwaki.core.renaming import Renaming
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan


@final
@register_edit
@dataclass(frozen=True, slots=True)
class MakeConstant(ReplacingEdit):
    """A module returns the ``value``, one number per feature, whatever it is given; its parameters leave.

    In the masked network the module runs, and its result is replaced.
    """

    kind: ClassVar[str] = "make constant"

    module: str
    value: tuple[float, ...]

    def check(self, plan: Plan) -> None:
        if not any(name.startswith(f"{self.module}.") for name in plan.dense):
            raise edited_by_hand(f"makes {self.module!r} constant, of which the network it is for has no tensor")
        if not self.value or not np.isfinite(self.value).all():
            raise edited_by_hand(f"makes {self.module!r} constant, and its value is not some finite numbers")

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        if self.module not in modules:
            raise edited_by_hand(f"makes {self.module!r} constant, which the model does not have")

    def replacement(self, old: nn.Module) -> nn.Module:
        like = next(iter(old.parameters()), torch.empty(0))
        return Constant(torch.tensor(self.value, dtype=like.dtype, device=like.device))

    def parts(self) -> Mapping[str, NewParameter]:
        """None: the value is a buffer."""
        return {}

    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        shapes[f"{self.module}.value"] = (len(self.value),)

    @property
    def moved(self) -> Mapping[str, str | None]:
        return {self.module: None}

    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        return modules[self.module].register_forward_hook(_Returns(self.value)).remove

    def before(self, done: Plan) -> Self:
        return self

    def joined(self, later: Iterable[Edit]) -> tuple[Self, list[Edit]]:
        """Features that leave later leave the value."""
        own, value, others = f"{self.module}.", self.value, list[Edit]()
        for edit in later:
            if isinstance(edit, ModuleEdit) and Renaming(edit.moved).after(f"{own}value") is None:
                raise PlanError(
                    f"The plan takes {self.module!r} away, which returns a constant already: {edit}. Make one plan "
                    "from the search space of the dense network that does both."
                )
            if isinstance(edit, Keep) and edit.tensor == f"{own}value":
                value = tuple(value[position] for position in edit.kept)
            other = edit.renamed(lambda name: None if name == self.module or name.startswith(own) else name)
            others += [] if other is None else [other]
        return replace(self, value=value), others

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is not None and whole is None:
            raise PlanError(
                f"The plan keeps {first.module!r}, which returns a constant in this network already. What has left "
                "cannot come back: use a plan that makes at least those modules constant."
            )
        return None if first is not None else whole

    def to_data(self) -> dict[str, Any]:
        return {"module": self.module, "value": list(self.value)}

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        return cls(str(data["module"]), tuple(map(float, data["value"])))

    def __str__(self) -> str:
        return f"{self.module} returns {len(self.value)} constants"


@dataclass(frozen=True, slots=True, eq=False)
class _Returns:
    """A forward hook that returns the same features in the shape of the result."""

    value: tuple[float, ...]

    def __call__(self, module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return torch.tensor(self.value, dtype=result.dtype, device=result.device).expand_as(result)
