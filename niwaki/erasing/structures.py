"""Find the structures of a network: what they are called, cost and consist of, and why some cannot be erased."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from niwaki.core.location import Location
from niwaki.core.structures import Structure
from niwaki.erasing.bare_streams import bare_streams
from niwaki.erasing.closing import Closing
from niwaki.erasing.concatenation import Concatenated, RunFlow, is_structure
from niwaki.erasing.factors import Factors
from niwaki.erasing.flow import ADDITIONS, CONCATENATIONS, Flow, Operand
from niwaki.erasing.naming import from_to, innermost, modules_of, named_apart
from niwaki.erasing.operand_tree import OperandTree
from niwaki.erasing.other_runs import NO_MAKERS, Makers, OtherRun, readers
from niwaki.erasing.passing import Passing
from niwaki.erasing.reading import Given, Reading
from niwaki.erasing.side_effects import SideEffects
from niwaki.erasing.validity import Validity
from niwaki.erasing.vanishing import Producers
from niwaki.errors import UnknownName
from niwaki.rules.constraints import Constraints
from niwaki.trace.graph import Graph, Node, Origin, Value

CannotCut = Callable[[Node, int], str | None]
_OPEN: frozenset[str] = frozenset()  # gates: all of them
_PASSES = "something from outside of it may pass through it and be added, too"
_NO_MODULE = "it has no parameters, and no module that is called once makes its result; use as_graph=True"


@dataclass(frozen=True, slots=True, eq=False)
class FoundStructures:
    """``listed``: all structures; ``vertices``: of each its vertex in ``flow``, an operand or a fan. ``producers``:
    which dimensions are tied to which; ``reading``: what reads the parts of structures that are concatenated.
    ``required``: vertices of inputs that every output which depends on them has to go on depending on. ``gates``: of
    each run the vertices that modules without parameters make, by the path of the module. ``factors``: of each
    structure the parameters that multiply its term in the code around it, whatever they are. ``streams``: where else
    the stream itself is added (`bare_streams`)."""

    graph: Graph
    flow: Flow
    nesting: OperandTree
    listed: tuple[Structure, ...]
    vertices: tuple[int, ...]
    producers: Producers
    reading: Reading
    required: tuple[int, ...]
    gates: Sequence[Mapping[str, int]]
    factors: tuple[frozenset[str], ...]
    streams: tuple[Location, ...]


def structures(
    graph: Graph,
    flows: Sequence[RunFlow],
    joined: Concatenated,
    constraints: Constraints,
    given: Sequence[Given],
    ignored: Mapping[str, str],
    cannot_cut: CannotCut,
    required: Sequence[str] = (),
    gates: Sequence[Mapping[str, int]] | None = None,
    streams: bool = False,
) -> FoundStructures | None:
    """All structures, in the order of the joins that they are given to; None if the network has no join.

    ``flows``: of all runs; ``joined``: the structures at concatenations. ``given``: for each run, the labels of what
    its operators were given (`propagate`). ``ignored``: parameters that must stay, by name, each with the pattern that
    says so. ``cannot_cut``: why a cut cannot take an operand from a join. ``required``: names of inputs that
    outputs have to go on depending on. ``gates``: see `FoundStructures`; these are structures, whatever vanishes with
    them. None where any operand can have a gate. ``streams``: the stream itself is a structure where it is added.

    Raises:
        UnknownName: no input has one of these names.
    """
    if graph.runs[0].error is not None or not flows[0].flow.operands:
        return None
    needed = _inputs_named(graph, flows[0].flow, required)
    return _Found(graph, flows, joined, constraints, given, cannot_cut, needed, gates, streams).described(ignored)


def _inputs_named(graph: Graph, flow: Flow, names: Sequence[str]) -> tuple[int, ...]:
    vertices = {graph.values[number].name: vertex for vertex, number in flow.sources.items()}
    for name in names:
        if name not in vertices:
            raise UnknownName(
                f"There is no input {name!r} in `required`: the inputs of this model are "
                f"{', '.join(map(repr, vertices))}."
            )
    return tuple(vertices[name] for name in names)


class _Found:
    def __init__(
        self,
        graph: Graph,
        flows: Sequence[RunFlow],
        joined: Concatenated,
        constraints: Constraints,
        given: Sequence[Given],
        cannot_cut: CannotCut,
        required: tuple[int, ...],
        gates: Sequence[Mapping[str, int]] | None,
        streams: bool,
    ) -> None:
        self._with_streams = streams
        self._known, flow, nesting = flows[0], flows[0].flow, flows[0].nesting
        self._graph, self._flow, self._nesting, self._cannot_cut = graph, flow, nesting, cannot_cut
        self._nodes = graph.runs[0].nodes
        self._given = given[0]
        self._producers = Producers(graph, constraints)
        self._passing = Passing(graph, graph.runs[0], flow, self._producers, given[0])
        self._beside = SideEffects.of(graph, graph.runs[0], flow)
        self._required, self._gates = required, gates
        closing = [Closing(known, here) for known, here in zip(flows, gates or [{}] * len(flows), strict=True)]
        self._closing = closing[0]
        counted = counted_inputs(graph, flow)
        self._bare = bare_streams(graph, flows[0], counted)
        self._validity = Validity(flow, counted, nesting, required)
        macs: Counter[int] = Counter()
        for term in constraints.macs:
            macs[term.node] += term.times * math.prod(axis.size for axis in term.axes)
        own_macs: Counter[int] = Counter()
        own_operators: Counter[int] = Counter()
        for vertex in nesting.order:
            if vertex < flow.operators:
                own_macs[nesting.nearest[vertex]] += macs[vertex]
                own_operators[nesting.nearest[vertex]] += 1
        self._macs, self._operators = nesting.summed(own_macs), nesting.summed(own_operators)
        read = readers(graph, self._nodes)
        self._home = {number: nesting.common(places) for number, places in read.items()}
        self._factors = Factors(self._nodes)
        self._reading = Reading(graph, constraints, given, flows, joined)
        self._others = [
            OtherRun.of(graph, known, self._producers, labels, joined, closed)
            for known, labels, closed in zip(flows[1:], given[1:], closing[1:], strict=True)
            if known.run.error is None
        ]

    def described(self, ignored: Mapping[str, str]) -> FoundStructures:
        """The structures themselves."""
        nesting, flow = self._nesting, self._flow
        listed = [
            vertex
            for vertex in sorted(nesting.around, key=self._by_join)
            if vertex in self._closing.paths or is_structure(self._known, vertex)
        ]
        streams = sorted(self._bare.difference(listed), key=self._by_join) if self._with_streams else []
        listed += streams
        number = {vertex: place for place, vertex in enumerate(listed)}
        within: dict[int, list[int]] = {vertex: [] for vertex in listed}
        for parameter, home in self._home.items():
            while home != nesting.sink:
                if home in within:
                    within[home].append(parameter)
                home = nesting.around[home]
        layers = {vertex: f"all of {path}" for path, vertex in flow.layers.items()}
        own = [vertex for vertex in listed if vertex not in layers and is_structure(self._known, vertex)]
        names = {**self._names(own), **self._closing.paths, **layers, **self._names_of(streams)}
        found = []
        factors: list[frozenset[str]] = []
        for vertex in listed:
            outer = nesting.around[vertex]
            while outer != nesting.sink and outer not in number:
                outer = nesting.around[outer]
            operand, *others = self._operands(vertex)
            layer = flow.bypasses.get(operand.join)
            join = operand.join if layer is None else max(flow.makers[operand.join, operand.value])
            inside = [self._graph.values[parameter] for parameter in sorted(within[vertex])]
            made, why = self._made_by(vertex, inside, ignored)
            factors.append(frozenset(self._graph.values[number].name for number in made.factors))
            gates = self._closing.in_order(made.closed)
            found.append(
                Structure(
                    names[vertex] if inside or len(gates) < 2 else from_to(gates),
                    self._nodes[join].location,
                    join,
                    operand.position,
                    self._operators[vertex],
                    self._macs[vertex],
                    sum(math.prod(value.shape) for value in inside),
                    tuple(value.name for value in inside),
                    made.names,
                    number.get(outer),
                    why,
                    tuple((other.join, other.position) for other in others),
                    not self._is_added(operand),
                    gates,
                    None if layer is None else layer.path,
                )
            )
        named = named_apart(found)
        return FoundStructures(
            self._graph,
            flow,
            nesting,
            named,
            tuple(listed),
            self._producers,
            self._reading,
            self._required,
            self._gates or (),
            tuple(factors),
            tuple(
                self._nodes[self._flow.operands[vertex].join].location
                for vertex in sorted(self._bare.difference(listed), key=self._by_join)
            ),
        )

    def _by_join(self, vertex: int) -> tuple[int, int]:
        operand = self._operands(vertex)[0]
        return operand.join, operand.position

    def _operands(self, vertex: int) -> list[Operand]:
        """The operands that a structure consists of, in the order of their joins."""
        return [self._flow.operands[end] for end in self._flow.ends(vertex)]

    def _is_added(self, operand: Operand) -> bool:
        return operand.join in self._flow.bypasses or self._nodes[operand.join].operator not in CONCATENATIONS

    def _names(self, vertices: Sequence[int]) -> dict[int, str]:
        """The innermost module that has all operators of a structure that are given parameters (or all that it has).
        Where several have the same, the largest module that makes the result and has nothing but operators of the
        structure; where that is another structure's name, or the first is the model, the first and the last such
        module."""
        reaching = (node for place, node in enumerate(self._nodes) if place in self._nesting.place)
        total = Counter(part for node in reaching for part in modules_of(node.location.module))
        inside: dict[int, list[Node]] = {}
        own: dict[int, list[Node]] = {}
        for vertex in vertices:
            places = sorted(one for one in self._nesting.within(vertex) if one < self._flow.operators)
            inside[vertex] = [self._nodes[place] for place in places or self._skipped(vertex)]
            own[vertex] = list(filter(self._weighs, inside[vertex])) or inside[vertex]
        names = {vertex: innermost([node.location.module for node in nodes]) for vertex, nodes in own.items()}
        times = Counter(names.values())
        taken = {name for vertex, name in names.items() if self._weighs(own[vertex][-1])}
        for vertex, name in names.items():
            if times[name] > 1 or not name:
                here = Counter(part for node in inside[vertex] for part in modules_of(node.location.module))
                whole = [
                    next((part for part in modules_of(node.location.module) if here[part] == total[part]), name)
                    for node in (own[vertex][0], own[vertex][-1])
                ]
                first, last = whole
                alone = first == last or (name and last not in taken)
                names[vertex] = last if alone else f"{first}..{last.removeprefix(f'{name}.')}"
        skips = {vertex for vertex in vertices if not self._operators[vertex]}
        return {vertex: f"{'skip of ' * (vertex in skips)}{name or 'model'}" for vertex, name in names.items()}

    def _names_of(self, streams: Sequence[int]) -> dict[int, str]:
        """The modules that make the streams, or the names of the inputs."""
        found = {}
        for vertex in streams:
            modules = [self._nodes[place].location.module for place in self._skipped(vertex)]
            given = self._graph.values[self._flow.operands[vertex].value].name
            found[vertex] = f"skip of {innermost(modules) or given or 'model'}"
        return found

    def _skipped(self, vertex: int) -> list[int]:
        """What makes an operand with which nothing but itself vanishes."""
        operand = self._flow.operands[vertex]
        return sorted(one for one in self._flow.makers[operand.join, operand.value] if one < self._flow.operators)

    def _made_by(self, vertex: int, inside: Sequence[Value], ignored: Mapping[str, str]) -> tuple[Makers, str | None]:
        """What makes the result, and why it cannot be erased; or None. Where it is concatenated, it need not be zero:
        nothing reads it any more."""
        operands = self._operands(vertex)
        if operands[0].join in self._flow.bypasses:
            return NO_MAKERS, self._why_layer_stays(vertex, inside, ignored)
        added = [operand for operand in operands if self._is_added(operand)]
        own = [self._nodes[one] for one in self._nesting.within(vertex) if one < self._flow.operators]
        gated = not inside and not any(map(self._weighs, own))
        zero = self._zero_by_gates(vertex) if gated else self._zero(vertex, inside)
        if zero == _PASSES and added and (gates := self._closing.inside(vertex)):
            again = self._zero(vertex, inside, gates)
            zero = again if isinstance(again, Makers) else zero
        made = zero if isinstance(zero, Makers) else NO_MAKERS
        if added and isinstance(zero, str):
            return made, zero
        if added and made.names and self._gates is not None:
            code = {"", *(path for one in operands for path in modules_of(self._nodes[one.join].location.module))}
            factors = self._factors.among(inside, {one.join for one in operands}, code)
            again = self._zero(vertex, inside, made.closed, factors) if factors else zero
            made = again if isinstance(again, Makers) else made
        if len(added) < len(operands):
            why = self._reading.why_not(vertex, zero=bool(made.names))
            why = why or self._empties(vertex, inside)
            if why is not None:
                return made, why
        held = next((value.name for value in inside if value.name in ignored), None)
        if held is not None:
            return made, f"{held!r} is ignored by the pattern {ignored[held]!r}"
        numbers = {value.number for value in inside}
        lines = sorted(str(self._nodes[operand.join].location) for operand in operands)
        if any(not other.agrees(vertex, numbers, lines, made) for other in self._others):
            return made, "another run (in train mode, or of another example call) uses its weights otherwise"
        return made, self._why_it_stays(vertex, operands)

    def _zero_by_gates(self, vertex: int) -> Makers | str:
        closed = self._closing.of_sum(vertex)
        return replace(NO_MAKERS, closed=closed) if closed or self._gates is None else _NO_MODULE

    def _why_layer_stays(self, vertex: int, inside: Sequence[Value], ignored: Mapping[str, str]) -> str | None:
        held = next((value.name for value in inside if value.name in ignored), None)
        if held is not None:
            return f"{held!r} is ignored by the pattern {ignored[held]!r}"
        beside = self._beside.of_structure(self._nesting.within(vertex), self._nesting.place)
        return beside or self._validity.why_not(vertex)

    def _empties(self, vertex: int, inside: Sequence[Value]) -> str | None:
        """Why a parameter outside of a structure would have nothing left to read; None if every one has."""
        for part in self._reading.parts(vertex):
            value = self._graph.values[part.value]
            if (
                value.origin is Origin.PARAMETER
                and len(part.positions) == value.shape[part.dim]
                and value not in inside
            ):
                return f"nothing would be left of {value.name!r}, which is needed"
        return None

    def _why_it_stays(self, vertex: int, operands: Sequence[Operand]) -> str | None:
        """Why operands cannot be taken from their joins, whatever makes them; None if they can."""
        whys = [
            self._beside.of_structure(self._nesting.within(vertex), self._nesting.place),
            *(_undefined(self._graph, self._nodes[one.join], one) for one in operands if self._is_added(one)),
            self._validity.why_not(vertex),
            *(self._cannot_cut(self._nodes[one.join], one.position) for one in operands),
        ]
        return next((why for why in whys if why is not None), None)

    def _zero(
        self,
        vertex: int,
        inside: Sequence[Value],
        closed: frozenset[str] = _OPEN,
        factors: frozenset[int] = frozenset(),
    ) -> Makers | str:
        """What makes the result of a structure, or why that is not zero where its producers but ``factors``, and the
        gates ``closed``, are."""
        operands = self._operands(vertex)
        parts = self._producers.along(self._given[operands[0].join][operands[0].position])
        if parts is None:
            return "its result is not zero where its weights are"
        divided = self._producers.divided(parts) & {value.number for value in inside}
        if divided:
            return f"{self._graph.values[min(divided)].name!r} is divided by its norm, which would be zero"
        makers = self._producers.of(parts)
        own = {value.number for value in inside} - factors
        others = makers - own - factors
        shared = [self._graph.values[number].name for number in sorted(others & self._reads(vertex))] if others else []
        if shared:
            return f"{shared[0]!r}, which makes its result, is used elsewhere too"
        names = tuple(value.name for value in inside if value.number in makers & own)
        if not names:
            scale = next(iter(self._factors.among(inside, {one.join for one in operands})), None)
            if scale is not None:
                return f"only {self._graph.values[scale].name!r} makes its result zero, and no unit is part of that"
            return "none of its parameters that has units makes its result"
        within = partial(self._nesting.contains, vertex)
        terms = self._closing.terms(closed)
        if not self._passing.vanishes(operands[0], parts, makers & own, within, terms):  # all are one value
            return _PASSES
        return Makers(parts, frozenset(makers & own), names, closed, factors)

    def _reads(self, vertex: int) -> set[int]:
        """The values that a structure is given."""
        places = (one for one in self._nesting.within(vertex) if one < self._flow.operators)
        return {number for place in places for number in self._nodes[place].inputs()}

    def _weighs(self, node: Node) -> bool:
        """Whether an operator is given a parameter."""
        return any(self._graph.values[number].origin is Origin.PARAMETER for number in node.inputs())


def counted_inputs(graph: Graph, flow: Flow) -> list[int]:
    """The inputs that keep an output valid: floating-point ones, and whole numbers that look up parameters (tokens);
    the others are masks and positions."""
    values, nodes = graph.values, graph.runs[0].nodes
    looked_up = {
        number
        for node in nodes
        if any(values[one].origin is Origin.PARAMETER for one in node.inputs())
        for number in node.inputs()
    }
    found = [
        vertex
        for vertex, number in flow.sources.items()
        if values[number].dtype.is_floating_point or values[number].dtype.is_complex or number in looked_up
    ]
    return found or list(flow.sources)


def _undefined(graph: Graph, join: Node, operand: Operand) -> str | None:
    """Why an addition without this operand would be something else; None if it is what is left."""
    if join.operator not in ADDITIONS:
        return None
    (made,) = [graph.values[number] for number in join.outputs if number is not None]
    other = next(graph.values[given.value] for place, given in enumerate(join.args[:2]) if place != operand.position)
    if (other.shape, other.dtype) != (made.shape, made.dtype):
        has = f"{list(other.shape)} of {other.dtype}"
        return f"what it is added to is {has}, and has to be stretched to {list(made.shape)}"
    if operand.position == 0 and join.kwargs.get("alpha", 1) != 1:
        return "what it is added to is multiplied on the way"
    return None
