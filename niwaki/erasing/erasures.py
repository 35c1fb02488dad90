"""The structures of a model, and what a cut does to erase some of them from its class or its program."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from torch import nn

from niwaki.core.edits import Edit, Erase
from niwaki.core.edits.erase import JoinOperand
from niwaki.core.structures import Structure
from niwaki.erasing.class_form import ClassForm
from niwaki.erasing.class_trial import tried
from niwaki.erasing.concatenation import Concatenated, RunFlow
from niwaki.erasing.flow import ADDITIONS, CONCATENATIONS
from niwaki.erasing.found_erasures import FoundErasures
from niwaki.erasing.gated import gate_modules
from niwaki.erasing.reading import Given
from niwaki.erasing.structures import CannotCut, FoundStructures, structures
from niwaki.errors import PlanError
from niwaki.program.module import Program
from niwaki.rules.constraints import Constraints
from niwaki.trace.graph import Graph, Node
from niwaki.trace.structures import ExampleCall


def erasures_of(
    model: nn.Module,
    graph: Graph,
    flows: Sequence[RunFlow],
    joined: Concatenated,
    constraints: Constraints,
    given: Sequence[Given],
    ignored: Mapping[str, str],
    calls: Sequence[ExampleCall],
    required: Sequence[str] = (),
    whole_layers: bool = False,
    streams: bool = False,
    inner: bool = False,
) -> FoundErasures | None:
    """The structures of ``model``; None if there is no join in it. The arguments are those of `structures`, the example
    ``calls``, and whether only ``whole_layers`` may be erased, entries of lists of modules. ``streams``: see
    `structures`; ``inner``: see `search_space`."""
    if isinstance(model, Program):
        found = structures(
            graph, flows, joined, constraints, given, ignored, _of_graph(model), required, streams=streams
        )
        return None if found is None else FoundErasures(found, _from_graph)
    gates = gate_modules(model, calls, graph, flows)
    found = structures(graph, flows, joined, constraints, given, ignored, _nothing_yet, required, gates)
    return None if found is None else _of_class(model, found, flows, constraints, calls, whole_layers, inner)


def _from_graph(found: FoundStructures, erased: Collection[int], tensors: frozenset[str]) -> tuple[Edit, ...]:
    nodes = found.graph.runs[0].nodes
    structures = [found.listed[number] for number in sorted(erased)]
    operands = [
        JoinOperand(one.name, nodes[join].location.node, position, _is_gated(one, nodes[join]))
        for one in structures
        for join, position in one.operands
    ]
    return (Erase(tuple(operands), tuple(sorted(tensors))),)


def _is_gated(structure: Structure, join: Node) -> bool:
    """Whether nothing but a gate makes an operand zero, where it has to be: what it is concatenated with reads no part
    of it any more."""
    return not structure.producers and join.operator not in CONCATENATIONS


def _of_graph(program: Program) -> CannotCut:
    def cannot_cut(join: Node, operand: int) -> str | None:
        why = program.why_not_taken(JoinOperand("", join.location.node, operand))
        return why and f"the program has nothing to take it from: {why}"

    return cannot_cut


def _nothing_yet(join: Node, operand: int) -> str | None:
    """A class is tried when all structures are known."""
    return None


def _of_class(
    model: nn.Module,
    found: FoundStructures,
    flows: Sequence[RunFlow],
    constraints: Constraints,
    calls: Sequence[ExampleCall],
    whole_layers: bool,
    inner: bool,
) -> FoundErasures:
    found = replace(found, listed=tuple(_summed_or_listed(one, found.graph) for one in found.listed))
    if not any(one.erasable for one in found.listed):
        return FoundErasures(found, _from_nothing)
    form = ClassForm(model, found, flows, constraints, inner)

    def from_class(found: FoundStructures, erased: Collection[int], tensors: frozenset[str]) -> tuple[Edit, ...]:
        left = form.without(erased, tensors)
        if whole_layers and left.edit.absent:
            half = next(iter(left.edit.absent))
            raise PlanError(
                f"With layout='uniform' only whole layers are erased, and the plan leaves {half!r} out of a layer that "
                "stays. Erase the rest of that layer, too."
            )
        return (left.edit,)

    def obstacle(erased: Collection[int], tensors: frozenset[str]) -> str | None:
        obstacles = form.without(erased, tensors).obstacles
        return f"{obstacles[0]}; use as_graph=True" if obstacles else None

    listed = tried(model, calls, found, form, FoundErasures(found, from_class).gone)
    kept = replace(found, listed=listed)
    erasures = FoundErasures(kept, from_class, staying=form.staying, obstacle=obstacle, runs_on=True)
    if not whole_layers:
        return erasures
    layers = _layers(form, erasures)
    inside = {number for layer in layers for number in layer}
    listed = tuple(
        one if number in inside or not one.erasable else replace(one, refused=_NO_LAYER)
        for number, one in enumerate(listed)
    )
    return FoundErasures(replace(found, listed=listed), from_class, layers, form.staying, obstacle, runs_on=True)


_NO_LAYER = "it is no whole layer, and layout='uniform' has no words for a layer without it"


def _layers(form: ClassForm, erasures: FoundErasures) -> list[tuple[int, ...]]:
    """The structures that make up each entry of a list of modules which can be deleted."""
    listed = erasures.listed
    outermost = [
        number
        for number, one in enumerate(listed)
        if one.erasable and not one.gates
        if not any(listed[outer].erasable for outer in erasures.around(number)[1:])
    ]
    entries = form.without(outermost, erasures.gone(outermost)).edit.entries
    layers = []
    for entry in entries:
        own = tuple(n for n in outermost if all(name.startswith(f"{entry}.") for name in listed[n].parameters))
        if form.without(own, erasures.gone(own)).edit.entries == (entry,):
            layers.append(own)
    return layers


def _from_nothing(found: FoundStructures, erased: Collection[int], tensors: frozenset[str]) -> tuple[Edit, ...]:
    raise PlanError("Nothing can be erased from this class.")


def _summed_or_listed(one: Structure, graph: Graph) -> Structure:
    """A structure, which is refused unless it is added or concatenated."""
    joins = {graph.runs[0].nodes[join].operator for join, _ in one.operands}
    if one.erasable and one.layer is None and not joins <= ADDITIONS | CONCATENATIONS:
        return replace(one, refused="the code that stacks it stays; use as_graph=True")
    return one
