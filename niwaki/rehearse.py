"""Try a search space before it is handed out: cut by a random plan, run, compare every shape with the expected one.

Whatever niwaki misunderstood about sizes shows here as an operator that fails, is missing, or gives another shape. Its
axes are then pinned with its source line, and the rehearsal starts again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Container, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from niwaki.core.location import Location
from niwaki.core.names import module_at
from niwaki.core.repairs import Scalar
from niwaki.core.space import BoolArray
from niwaki.errors import PlanError, TraceError, first_line
from niwaki.rules.views import STRIDING
from niwaki.solve.build import Builder
from niwaki.solve.facts import Facts
from niwaki.surgery.cut import cut_empty, duplicate
from niwaki.trace.graph import Graph, Node, Origin, Ref, Run
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import trace

_SHARE = 0.25  # a hard cut: quick to run, different for groups of different size, and all of the smallest
_LEAST = 2  # of a dimension with one position torch makes another use: einsum multiplies instead of contracting
_ATTEMPTS = 30


def rehearsed(graph: Graph, facts: Facts, builder: Builder, calls: Sequence[ExampleCall]) -> list[str]:
    """Pin in ``builder`` what does not survive a random plan; returns notes about what could not be mended."""
    rng = np.random.default_rng(0)
    failure = f"it still fails after {_ATTEMPTS} attempts"
    for attempt in range(_ATTEMPTS):
        if not len(builder.units):
            return []
        space = builder.space()
        try:
            plan = space.plan(keep := builder.units.random_keep(rng, _LEAST, _SHARE, odd=True))
        except PlanError as cause:
            failure = str(cause)
            break
        problem = _rehearse(cut_empty(space.model, plan), graph, facts, builder, calls, keep)
        if problem is None:
            return []
        copying = _fault_of_copying(space.model, graph, facts, builder, calls) if not attempt else None
        if copying is not None:
            builder.pin_everything(f"a copy of the model is another network: {copying}")
            return [
                "A copy of the model computes something else than the model, and niwaki cuts a copy, so everything is "
                f"pinned: {copying}. An identity (`is`, `id`), a global name or a registry may tell the two apart."
            ]
        if not problem.pin(builder):
            failure = problem.text
            break
    builder.pin_everything(f"a rehearsed cut fails where niwaki cannot tell what to pin: {failure}")
    return [f"A rehearsed cut failed, and niwaki could not tell what to pin, so everything is pinned: {failure}"]


class _Problem:
    """An operator that a cut breaks, and the message it broke with."""

    def __init__(self, facts: Facts, index: int, text: str) -> None:
        self._facts, self._index, self.text = facts, index, text

    def pin(self, builder: Builder) -> bool:
        """Pin what the operator touches, or the nearest operator before it that touches anything free."""
        for index in range(min(self._index, len(self._facts.touched) - 1), -1, -1):
            touched = self._facts.touched[index]
            text = f"after a cut, {touched.node.operator} {self.text}"
            if builder.pin_axes(touched.axes, text, touched.node.location):
                return True
        return False

    def __str__(self) -> str:
        node = self._facts.touched[min(self._index, len(self._facts.touched) - 1)].node
        return f"{node.operator} at {node.location} {self.text}"


def _fault_of_copying(
    model: torch.nn.Module, graph: Graph, facts: Facts, builder: Builder, calls: Sequence[ExampleCall]
) -> _Problem | None:
    """What is wrong already with a copy that nothing was cut from, if it is not so with the model itself when that runs
    again. The copy has the memory of the model's parameters, and takes none of its own."""
    lent: dict[int, object] = {
        id(parameter): torch.nn.Parameter(parameter.detach(), parameter.requires_grad)
        for parameter in model.parameters()
    }
    lent |= {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    everything = np.ones(len(builder.units), dtype=bool)
    problem = _rehearse(duplicate(model, lent), graph, facts, builder, calls, everything)
    if problem is None or _rehearse(model, graph, facts, builder, calls, everything) is not None:
        return None
    return problem


def _rehearse(
    small: torch.nn.Module,
    graph: Graph,
    facts: Facts,
    builder: Builder,
    calls: Sequence[ExampleCall],
    keep: BoolArray,
) -> _Problem | None:
    """Run the cut model as the model was run; a run in train mode only if it goes through lines of its own."""
    start = 0
    seen: set[Location] = set()  # lines that a rehearsed run has been through
    for run, call in zip(graph.runs, itertools.cycle(calls), strict=False):
        lines = {node.location for node in run.nodes if torch.Tag.nondeterministic_seeded not in node.operator.tags}
        if run.error is None and not lines <= seen:
            seen |= lines
            try:
                tried = _tried(small, call, run)
            except TraceError as failure:
                return _Problem(
                    facts, start + failure.operator, f"fails, or what follows it: {first_line(failure.__cause__)}"
                )
            problem = _compare(small, graph, facts, builder, start, run, tried, keep)
            if problem is not None:
                return problem
        start += len(run.nodes)
    return None


def _tried(small: torch.nn.Module, call: ExampleCall, run: Run) -> Graph:
    """The cut model run as ``run`` was. What a network computes in its first run and keeps in a cache (a table of
    positions) is a constant in its second, and may have been one in ``run``: on another path, another try."""
    for _ in range(2):
        tried = trace(small, [call], modes=(run.training,), required=True, decided=run.decisions)
        paths = [[name for _, name in _named(one, all_of_them=False)] for one in (run, tried.runs[0])]
        if paths[0] == paths[1]:
            break
    return tried


def _compare(
    small: torch.nn.Module,
    graph: Graph,
    facts: Facts,
    builder: Builder,
    start: int,
    run: Run,
    tried: Graph,
    keep: BoolArray,
) -> _Problem | None:
    """Operator by operator; where torch took another way to the same content, by what computes content only."""
    dense, ours = _named(run, all_of_them=True), _named(tried.runs[0], all_of_them=True)
    if [name for _, name in dense] != [name for _, name in ours]:
        dense, ours = _named(run, all_of_them=False), _named(tried.runs[0], all_of_them=False)
    if len(ours) > len(dense):
        return _Problem(facts, start + len(run.nodes) - 1, f"is followed by {ours[len(dense)][1]}")
    left: dict[int, int] = {}  # surviving positions by the identity of an axis
    for position, (index, name) in enumerate(dense):
        node = run.nodes[index]
        if position >= len(ours) or ours[position][1] != name:
            return _Problem(facts, start + index, "is replaced by another operator")
        other = tried.runs[0].nodes[ours[position][0]]
        if other.operator is not node.operator or facts.touched[start + index].aside:
            continue
        resized = facts.touched[start + index].resized
        given, instead = _constants(node, graph), _constants(other, tried)
        given = [_repaired(constant, facts.touched[start + index].rescaled, small) for constant in given]
        if len(given) != len(instead):
            return _Problem(facts, start + index, f"is given {len(instead)} constants instead of {len(given)}")
        odd = next((pair for pair in zip(given, instead, strict=True) if not _same(*pair, resized)), None)
        if odd is not None:
            return _Problem(facts, start + index, _difference(*odd))
        reads, instead = _reads(node, graph), _reads(other, tried)
        if reads != instead:
            return _Problem(facts, start + index, f"reads {_listed(instead)} instead of {_listed(reads)}")
        for before, after in zip(node.outputs, other.outputs, strict=True):
            if before is None or after is None:
                continue
            label = facts.labels[before]
            assert label is not None
            for axis in label.axes:
                if id(axis.ids) not in left:
                    left[id(axis.ids)] = builder.units.left(axis, keep)
            expected = tuple(left[id(axis.ids)] for axis in label.axes)
            if expected != tried.values[after].shape:
                shape = list(tried.values[after].shape)
                return _Problem(facts, start + index, f"gives the shape {shape} instead of {list(expected)}")
    return None


def _named(run: Run, all_of_them: bool) -> list[tuple[int, str]]:
    """The operators of a run and their places in it. Not ``all_of_them``: without those that only arrange, and with one
    name for the ways to multiply and to add, between which torch chooses by strides that sizes of 1 leave open."""
    if all_of_them:
        return [(index, str(node.operator)) for index, node in enumerate(run.nodes)]
    named = []
    for index, node in enumerate(run.nodes):
        packet = node.operator.overloadpacket
        if packet in _PRODUCTS:
            named += [(index, part) for part in _PRODUCTS[packet]]
        elif packet not in _ARRANGING and not _restrided(node):
            named.append((index, str(packet).removesuffix("_")))
    return named


def _restrided(node: Node) -> bool:
    """Whether torch itself gave a result other strides, as average pooling to a single position does at times."""
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
    """The arguments that are no tensors, and the contents of small tensors that are constants."""
    found: list[Any] = []
    for given in (*node.args, *node.kwargs.values()):
        for argument in given if isinstance(given, tuple) else (given,):
            if isinstance(argument, Ref):
                found += [graph.contents[argument.value]] if argument.value in graph.contents else []
            elif isinstance(argument, (int, float, complex, str)):
                found.append(argument)
    return found


def _difference(given: Any, instead: Any) -> str:
    """What became of a constant, in one line: a tensor is shown by its shape."""
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


def _repaired(constant: Any, rescaled: Mapping[float, Scalar], small: torch.nn.Module) -> Any:
    """What a float argument has to be after the cut."""
    if type(constant) is not float or constant not in rescaled:
        return constant
    scalar = rescaled[constant]
    value = module_at(small, scalar.module).__dict__[scalar.name]
    return constant if value is None else _Rounded(value)  # None, the machine epsilon, where the width is as it was


class _Rounded(float):
    """A float that torch's own code may round to float32."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and math.isclose(self, other, rel_tol=1e-6)

    __hash__ = float.__hash__


def _same(given: Any, instead: Any, resized: Container[int]) -> bool:
    """Whether a cut has left a constant alone; the whole numbers ``resized`` may change."""
    if isinstance(given, torch.Tensor) and isinstance(instead, torch.Tensor):
        return given.shape == instead.shape and torch.allclose(given, instead, rtol=0, atol=0, equal_nan=True)
    if type(given) is not type(instead) and not isinstance(given, _Rounded):
        return False
    return bool(given == instead or given != given or (type(given) is int and given in resized))
