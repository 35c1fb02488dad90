"""What is listed, looked at by a run: with its producers at zero a term is zero, and what is left is what the network
computes when the addition is given zeros in its place."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from niwaki.core.structures import Structure
from niwaki.erasing.flow import ADDITIONS, operands
from niwaki.trace.graph import Node
from niwaki.trace.structures import tensors_in
from niwaki.verify import difference


class Additions(TorchDispatchMode):
    """Counts additions of two tensors, keeps the largest entry of one operand of one of them, or takes zeros for it."""

    def __init__(self, addition: int, operand: int, zeros: bool) -> None:
        super().__init__()
        self._left, self._operand, self._zeros = addition, operand, zeros
        self.largest: float | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in ADDITIONS and all(isinstance(one, Tensor) for one in args[:2]):
            if not self._left:
                self.largest = float(args[self._operand].abs().max())
                if self._zeros:
                    args = self._without(args)
            self._left -= 1
        return func(*args, **(kwargs or {}))

    def _without(self, args: Sequence[Any]) -> list[Any]:
        """The arguments with zeros for the operand; where it is written to, its memory is zero from now on."""
        given = list(args)
        given[self._operand] = torch.zeros_like(given[self._operand])
        if self._operand == 0:
            given[0] = args[0].zero_() if args[0] is not args[1] else given[0]
        return given


def additions(nodes: Sequence[Node]) -> dict[int, int]:
    """For each operator that adds two tensors, how many did before it."""
    found: dict[int, int] = {}
    for place, node in enumerate(nodes):
        if node.operator in ADDITIONS and any(position is not None for position, _ in operands(node)):
            found[place] = len(found)
    return found


def outputs(model: nn.Module, inputs: Sequence[Tensor], mode: Additions) -> list[Tensor]:
    """What the model computes, copied before anything could write to it."""
    with torch.no_grad(), mode:
        made = list(tensors_in(model(*(one.clone() for one in inputs))))
    return [one.clone() for one in made]


def problem(model: nn.Module, inputs: Sequence[Tensor], one: Structure, addition: int) -> str | None:
    """What is wrong with an erasable structure; None if nothing is. The model is in eval mode."""
    small = copy.deepcopy(model)
    for path in one.gates:
        small.get_submodule(path).register_forward_hook(lambda *call: torch.zeros_like(call[-1]))
    producers = dict(small.named_parameters())
    with torch.no_grad():
        for name in one.producers:
            producers[name].zero_()
    seen = Additions(addition, one.operand, zeros=False)
    ours = outputs(small, inputs, seen)
    if seen.largest != 0:
        return f"with its producers at zero, {one.name!r} still adds {seen.largest}"
    apart = difference(ours, outputs(model, inputs, Additions(addition, one.operand, zeros=True)))
    return None if apart < 1e-10 else f"without {one.name!r}, the output is {apart:.1e} from that with its term at zero"
