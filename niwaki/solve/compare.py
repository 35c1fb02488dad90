"""Compare a run of a cut network with the dense run, operator by operator."""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from niwaki.core.location import Location
from niwaki.core.names import module_at
from niwaki.core.repairs import Scalar
from niwaki.core.space import BoolArray
from niwaki.errors import first_line
from niwaki.rules.axis import Axis
from niwaki.rules.constraints import Constraints
from niwaki.rules.label import Scale
from niwaki.rules.views import STRIDING
from niwaki.solve.groups import SolvedGroups
from niwaki.trace.graph import Graph, Node, Origin, Ref, Run


@dataclass(frozen=True, slots=True)
class Problem:
    """An operator that a cut has changed wrongly: its index in `Constraints.touched`, and what happened there.

    ``fails``: it raised an error. ``detour``: torch ran other operators. ``deviating``: the (output, dimension) pairs
    whose size is not the expected one.
    """

    place: int
    text: str
    fails: bool = False
    detour: bool = False
    deviating: tuple[tuple[int, int], ...] = ()

    def told(self, constraints: Constraints) -> str:
        """Name the operator, its line and what happened, as part of a sentence."""
        node = constraints.touched[min(self.place, len(constraints.touched) - 1)].node
        return f"{node.operator} at {node.location} {self.text}"


class Comparison:
    """Compares runs of a cut network that keeps the units ``keep`` with dense runs of ``graph``."""

    def __init__(
        self, graph: Graph, constraints: Constraints, units: SolvedGroups, small: torch.nn.Module, keep: BoolArray
    ) -> None:
        self._graph, self._constraints, self._units, self._small, self._keep = graph, constraints, units, small, keep
        self._left: dict[int, int] = {}  # surviving positions, by the identity of ids that the labels keep alive

    def problem(self, run: Run, tried: Graph, start: int) -> Problem | None:
        """Find the first operator of ``run``, which begins at index ``start``, that the cut network runs differently.
        Where torch took another way to the same content, only the operators that compute content are compared."""
        again = tried.runs[0]
        dense, ours = named(run, all_of_them=True), named(again, all_of_them=True)
        length = len(dense) if again.error is None else len(ours)
        if [name for _, name in dense[:length]] != [name for _, name in ours]:
            dense, ours = named(run, all_of_them=False), named(again, all_of_them=False)
            length = len(dense) if again.error is None else len(ours)
        if len(ours) > len(dense):
            text = f"is followed by {ours[len(dense)][1]}"
            return Problem(start + len(run.nodes) - 1, text, detour=True)
        for position, (index, name) in enumerate(dense[:length]):
            if position >= len(ours) or ours[position][1] != name:
                return Problem(start + index, "is replaced by another operator", detour=True)
            node, other = run.nodes[index], again.nodes[ours[position][0]]
            found = self._of_one(start + index, node, other, tried) if other.operator is node.operator else None
            if found is not None:
                return found
        if again.error is None:
            return None
        number = length if again.inside else length - 1  # the operator that failed, or the last one before Python did
        last = dense[max(0, min(number, len(dense) - 1))][0] if dense else 0
        return Problem(start + last, f"fails, or what follows it: {first_line(again.error)}", fails=True)

    def detours_only(self, run: Run, tried: Graph) -> bool:
        """Whether Python made the same calls and the outputs have the expected shapes, so that only torch chose other
        operators inside these calls."""
        again = tried.runs[0]
        return (
            len(again.outputs) == len(run.outputs) > 0
            and _calls(again) == _calls(run)
            and all(
                self._expected(number) == tried.values[result].shape
                for number, result in zip(run.outputs, again.outputs, strict=True)
            )
        )

    def _of_one(self, place: int, node: Node, other: Node, tried: Graph) -> Problem | None:
        """Find what is wrong with ``other``, the counterpart of ``node`` in the cut network."""
        touched = self._constraints.touched[place]
        if touched.aside:
            return None
        reads, read = _reads(node, self._graph), _reads(other, tried)
        if reads != read:
            return Problem(place, f"reads {_listed(read)} instead of {_listed(reads)}")
        given, instead = _constants(node, self._graph), _constants(other, tried)
        given = [self._repaired(constant, touched.rescaled) for constant in given]
        if len(given) != len(instead):
            return Problem(place, f"is given {_counted(instead)} instead of {len(given)}")
        odd = next((pair for pair in zip(given, instead, strict=True) if not _same(*pair, touched.resized)), None)
        if odd is not None:
            return Problem(place, _difference(*odd))
        for output, (before, after) in enumerate(zip(node.outputs, other.outputs, strict=True)):
            if before is None or after is None:
                continue
            expected, shape = self._expected(before), tried.values[after].shape
            if expected != shape:
                text = f"gives the shape {list(shape)} instead of {list(expected)}"
                if len(expected) != len(shape):
                    return Problem(place, text)
                wrong = (dim for dim, sizes in enumerate(zip(expected, shape, strict=True)) if sizes[0] != sizes[1])
                return Problem(place, text, deviating=tuple((output, dim) for dim in wrong))
        return None

    def _repaired(self, constant: Any, rescaled: Mapping[float, Scalar | tuple[Scale, ...]]) -> Any:
        """The value that a float argument must have after the cut."""
        how = rescaled.get(constant) if type(constant) is float else None
        if how is None:
            return constant
        if isinstance(how, Scalar):
            value = module_at(self._small, how.module).__dict__[how.name]
            # None stands for the machine epsilon: the width has not changed
            return constant if value is None else _RoundedFactor(value)
        shares = ((factor.axis.size / self._positions(factor.axis)) ** factor.power for factor in how)
        return _RoundedFactor(constant * math.prod(shares))

    def _positions(self, axis: Axis) -> int:
        """How many positions of an axis are left after the cut."""
        if id(axis.ids) not in self._left:
            self._left[id(axis.ids)] = self._units.left(axis, self._keep)
        return self._left[id(axis.ids)]

    def _expected(self, value: int) -> tuple[int, ...]:
        """The shape that a tensor of the dense run has after the cut."""
        label = self._constraints.labels[value]
        assert label is not None
        return tuple(map(self._positions, label.axes))


def named(run: Run, all_of_them: bool) -> list[tuple[int, str]]:
    """The operators of a run with their indices. If not ``all_of_them``, operators that only rearrange are left out,
    and all ways to multiply or to add have one name: torch chooses between them by strides, which are ambiguous for
    sizes of 1."""
    if all_of_them:
        return [(index, str(node.operator)) for index, node in enumerate(run.nodes)]
    found = []
    for index, node in enumerate(run.nodes):
        packet = node.operator.overloadpacket
        if packet in _PRODUCTS:
            found += [(index, part) for part in _PRODUCTS[packet]]
        elif packet not in _ARRANGING and not _restrided(node):
            found.append((index, str(packet).removesuffix("_")))
    return found


def _calls(run: Run) -> list[tuple[object, Location]]:
    """What Python called to compute content, and where."""
    found: list[tuple[object, Location]] = []
    last = 0
    for node in run.nodes:
        if node.operator.overloadpacket not in _ARRANGING and not _restrided(node) and node.call.key != last:
            found.append((node.call.function, node.location))
            last = node.call.key
    return found


def _restrided(node: Node) -> bool:
    """Whether torch itself changed the strides of a result, as average pooling to a single position sometimes does."""
    return node.operator is torch.ops.aten.as_strided_.default and node.call.function not in STRIDING


_ARRANGING = frozenset(
    getattr(torch.ops.aten, name)
    for name in (
        "view _unsafe_view reshape _reshape_alias clone contiguous alias detach expand t transpose permute "
        "unsqueeze squeeze"
    ).split()
)
_PRODUCTS = {
    torch.ops.aten.mm: ("product",),
    torch.ops.aten.bmm: ("product",),
    torch.ops.aten.mv: ("product",),
    torch.ops.aten.dot: ("product",),
    torch.ops.aten.addmm: ("product", "aten.add"),
    torch.ops.aten.baddbmm: ("product", "aten.add"),
}


def _reads(node: Node, graph: Graph) -> list[str]:
    """The parameters and buffers among the arguments, by name."""
    values = [graph.values[number] for number in node.inputs()]
    return [value.name for value in values if value.origin in (Origin.PARAMETER, Origin.BUFFER)]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names)) or "no parameter of its own"


def _constants(node: Node, graph: Graph) -> list[Any]:
    """The arguments that are not tensors, and the contents of small tensors that are constants."""
    found: list[Any] = []
    for given in (*node.args, *node.kwargs.values()):
        for argument in given if isinstance(given, tuple) else (given,):
            if isinstance(argument, Ref):
                found += [graph.contents[argument.value]] if argument.value in graph.contents else []
            elif isinstance(argument, (int, float, complex, str)):
                found.append(argument)
    return found


def _counted(constants: Sequence[Any]) -> str:
    return f"{len(constants) or 'no'} constant{'' if len(constants) == 1 else 's'}"


def _difference(given: Any, instead: Any) -> str:
    """Say how a constant has changed, in one line that shows tensors by their shapes."""
    tensors = [constant for constant in (given, instead) if isinstance(constant, torch.Tensor)]
    if len(tensors) == 2 and given.shape == instead.shape:
        return f"is given a constant tensor of shape {list(given.shape)} with other values"
    before, after = (
        f"a constant tensor of shape {list(constant.shape)}"
        if isinstance(constant, torch.Tensor)
        else first_line(repr(constant), 60)
        for constant in (given, instead)
    )
    return f"is given {after} instead of {before}"


class _RoundedFactor(float):
    """A float that torch's own code may round to float32."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and math.isclose(self, other, rel_tol=1e-6)

    __hash__ = float.__hash__


def _same(given: Any, instead: Any, resized: Container[int]) -> bool:
    """Whether a constant is unchanged after a cut, which may change the whole numbers ``resized``."""
    if isinstance(given, torch.Tensor) and isinstance(instead, torch.Tensor):
        return given.shape == instead.shape and torch.allclose(given, instead, rtol=0, atol=0, equal_nan=True)
    if type(given) is not type(instead) and not isinstance(given, _RoundedFactor):
        return False
    return bool(given == instead or given != given or (type(given) is int and given in resized))
