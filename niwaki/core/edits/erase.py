"""Structures that leave the graph of an exported program."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self, final

from torch import nn

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
from niwaki.core.structures import group_of
from niwaki.errors import PlanError

if TYPE_CHECKING:
    from niwaki.core.plan import Plan

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class JoinOperand:
    """What the structure ``structure`` gives to a join: the operand number ``position`` of the node ``node``.
    ``gated``: no parameters make it, so that a gate has to make it zero before it is taken."""

    structure: str
    node: str
    position: int
    gated: bool = False


class GraphModule(ABC):
    """A module that runs a graph from which operands can be taken."""

    @abstractmethod
    def why_not_taken(self, operand: JoinOperand) -> str | None:
        """Why the graph does not have the operand of a join that would have another left; None if it does."""

    @abstractmethod
    def take(self, operands: Collection[JoinOperand], tensors: Collection[str]) -> None:
        """Take operands from their joins, and remove what nothing needs any more, ``tensors`` among it."""

    @abstractmethod
    def put_gates(self, operands: Collection[JoinOperand], factor: Factor) -> Callable[[], None]:
        """Let ``factor`` make something else of operands where they join the others, until the result is called."""


@final
@register_edit
@dataclass(frozen=True, slots=True)
class Erase(GatedEdit):
    """The ``operands`` of joins that go, with all that served only them. ``tensors``: those parameters and buffers."""

    kind: ClassVar[str] = "erase"

    operands: tuple[JoinOperand, ...]
    tensors: tuple[str, ...]

    @property
    def place(self) -> Place:
        return ("erase",)

    @property
    def for_graph(self) -> bool | None:
        return True

    def check(self, plan: Plan) -> None:
        for name in self.tensors:
            if name not in plan.dense:
                raise edited_by_hand(f"erases a tensor {name!r}, which the network it is for does not have")
        if not self.operands or len(set(self.operands)) < len(self.operands):
            raise edited_by_hand("erases nothing, or one structure twice")

    def check_model(self, modules: Mapping[str, nn.Module]) -> None:
        graph = modules[""]
        if not isinstance(graph, GraphModule):
            raise PlanError(
                f"The plan erases {self} from an exported program, and this is a {type(graph).__qualname__}. Cut with "
                "as_graph=True and example inputs, or pass the exported program."
            )
        for operand in self.operands:
            why = graph.why_not_taken(operand)
            if why is not None:
                raise PlanError(
                    f"The plan is for another network: it erases {operand.structure!r}, operand {operand.position} of "
                    f"the node {operand.node!r}, and {why}. Pass the dense program that the plan was made for."
                )

    def apply(self, modules: Mapping[str, nn.Module]) -> None:
        graph = modules[""]
        assert isinstance(graph, GraphModule)
        graph.take(self.operands, self.tensors)

    def update_shapes(self, shapes: dict[str, Shape]) -> None:
        """Nothing comes instead."""

    @property
    def moved(self) -> Mapping[str, str | None]:
        return dict.fromkeys(self.tensors)

    def mask(self, modules: Mapping[str, nn.Module]) -> Callable[[], None]:
        """What makes the other operands is zero by then, and so are they."""
        return self.gate(modules, closed) if self.is_gated else nothing_to_mask

    @property
    def is_gated(self) -> bool:
        return any(operand.gated for operand in self.operands)

    def gate(self, modules: Mapping[str, nn.Module], factor: Factor) -> Callable[[], None]:
        graph = modules[""]
        assert isinstance(graph, GraphModule)
        return graph.put_gates([operand for operand in self.operands if operand.gated], factor)

    @classmethod
    def then(cls, first: Self | None, later: Self | None) -> Self | None:
        if first is None or later is None:
            return first or later
        operands = (_before(first.operands, one) for one in later.operands)
        return cls((*first.operands, *operands), tuple(sorted({*first.tensors, *later.tensors})))

    @classmethod
    def left(cls, first: Self | None, whole: Self | None, done: Plan, plan: Plan) -> Self | None:
        if first is None or whole is None:
            if first is not None:
                raise _left_already(first.operands[0])
            return whole
        kept = [one for one in first.operands if len(plan.kept.get(group_of(one.structure), range(1)))]
        lost = [one for one in kept if one not in whole.operands]
        if lost:
            raise _left_already(lost[0])
        rest = tuple(_after(first.operands, one) for one in whole.operands if one not in first.operands)
        return cls(rest, tuple(sorted({*whole.tensors} - {*first.tensors}))) if rest else None

    def renamed(self, name: Callable[[str], str | None]) -> Self | None:
        return self

    def to_data(self) -> dict[str, Any]:
        return {
            "operands": [[one.structure, one.node, one.position, one.gated] for one in self.operands],
            "tensors": list(self.tensors),
        }

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> Self:
        operands = (
            JoinOperand(str(name), str(node), whole_number(position), bool(gated))
            for name, node, position, gated in data["operands"]
        )
        return cls(tuple(operands), tuple(map(str, data["tensors"])))

    def __str__(self) -> str:
        names = [one.structure for one in self.operands]
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        return f"{', '.join(names[:_SHOWN])}{more}"


def _before(taken: Sequence[JoinOperand], operand: JoinOperand) -> JoinOperand:
    """``operand`` of a network without ``taken``, numbered as in the network that has them."""
    position = operand.position
    for gone in sorted(one.position for one in taken if one.node == operand.node):
        position += gone <= position
    return replace(operand, position=position)


def _after(taken: Sequence[JoinOperand], operand: JoinOperand) -> JoinOperand:
    """``operand`` of a network that has ``taken``, numbered as in the network without."""
    gone = [one for one in taken if one.node == operand.node and one.position < operand.position]
    return replace(operand, position=operand.position - len(gone))


def _left_already(operand: JoinOperand) -> PlanError:
    return PlanError(
        f"The plan keeps the structure {operand.structure!r}, which has left this network already. What has left "
        "cannot come back: use a plan that erases at least what has been erased."
    )
