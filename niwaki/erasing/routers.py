"""Find routers and what belongs to each of their experts, by what a run did and how the modules are built.

A router is a parameter with a dimension along which operators choose: a softmax, a top-k, the largest. What goes with
one of its experts is a guess from sizes: the entry of a list of modules, the slice of a tensor that holds all experts,
an attribute that counts them. `niwaki.erasing.expert_trial` finds out whether it is right.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from niwaki.core.edits import Edit, EraseExperts, SetAttribute
from niwaki.core.edits.erase_experts import ExpertList
from niwaki.core.location import Location
from niwaki.core.metadata import SIZES
from niwaki.core.names import named_buffers, named_modules, named_parameters
from niwaki.core.objects import class_attribute
from niwaki.core.paths import Where, part
from niwaki.erasing.living import around
from niwaki.erasing.reading import Given
from niwaki.rules.constraints import Constraints
from niwaki.trace.graph import Graph, ModuleCall, Node, Origin, Ref, Run
from niwaki.trace.module_calls import Argument

aten = torch.ops.aten
_CHOOSING = frozenset(
    {
        aten._softmax.default,
        aten.topk.default,
        aten.argmax.default,
        aten.max.dim,
        aten.sort.default,
        aten.sort.stable,
    }
)
Number = tuple[str, str, Where]  # a module, its attribute, and where in it


@dataclass(frozen=True, slots=True)
class Router:
    """A router, and what belongs to its experts.

    ``weight``: its parameter, of which dimension ``dim`` has a position per expert. ``module``: what makes logits of it
    while it is called, at ``location``, with operator ``node`` of the first run. ``block``: the smallest module that is
    called and has all of it. ``least``: how many of the ``experts`` have to stay. ``slices``: dimensions of tensors
    with a position per expert, the weight's among them; ``lists``: lists with an entry per expert; ``numbers``:
    attributes that count them. ``why``: why it cannot lose any.
    """

    weight: str
    dim: int
    module: str
    block: str
    node: int
    location: Location
    experts: int
    least: int
    slices: tuple[tuple[str, int], ...]
    lists: tuple[ExpertList, ...]
    numbers: tuple[Number, ...]
    why: str | None = None

    def edits(self, kept: Sequence[int]) -> tuple[Edit, ...]:
        """What a cut does where the experts ``kept`` stay, besides the `Keep` of each slice."""
        numbers = (SetAttribute(*place, len(kept)) for place in self.numbers)
        return (EraseExperts(self.weight, self.module, self.experts, kept, self.lists), *numbers)

    def entries(self, expert: int) -> tuple[str, ...]:
        """The paths of what one expert is in lists."""
        return tuple(f"{one.path}.{one.keys[expert]}" for one in self.lists)


def routers(
    model: nn.Module,
    graph: Graph,
    constraints: Constraints,
    given: Sequence[Given],
    taken: Collection[tuple[str, int]],
    decided: Collection[Number],
    looked_after: Sequence[object],
) -> list[list[Router]]:
    """All routers of ``model`` that have experts, in the order in which they choose; of each some guesses at what
    belongs to its experts, the likeliest first.

    ``given``: the labels of what operators were given (`propagate`). ``taken``: dimensions of tensors whose positions
    are units already; ``decided``: numbers that follow these. ``looked_after``: objects on modules whose numbers an
    integration updates.
    """
    if graph.runs[0].error is not None:
        return []
    chosen = _chosen(graph, constraints, given)
    modules = dict(named_modules(model))
    lists = (ExpertList.of(path, module) for path, module in modules.items())
    found = _Candidates(
        modules,
        {name: tuple(one.shape) for name, one in (*named_parameters(model), *named_buffers(model))},
        graph,
        taken,
        decided,
        {id(one) for one in looked_after},
        frozenset(graph.values[value].name for value, _ in chosen),
        tuple(one for one in lists if one is not None),
    )
    return [guesses for value, dim in chosen if (guesses := found.guesses(value, dim))]


def chosen_among(graph: Graph, constraints: Constraints, given: Sequence[Given]) -> list[str]:
    """The parameters among whose positions a program chooses some, if it may have experts: a tensor of more dimensions
    has as many."""
    sizes = [one.shape for one in graph.values if one.origin is Origin.PARAMETER and len(one.shape) > 2]
    found = ((graph.values[value], dim) for value, dim in _chosen(graph, constraints, given))
    return [one.name for one, dim in found if any(shape[0] == one.shape[dim] for shape in sizes)]


def _chosen(graph: Graph, constraints: Constraints, given: Sequence[Given]) -> dict[tuple[int, int], None]:
    """The parameters and dimensions of them among whose positions operators of the first run choose."""
    first = {ids: place for place, (ids, _) in constraints.ids_of.items()}
    found: dict[tuple[int, int], None] = {}
    for place, node in enumerate(graph.runs[0].nodes):
        if node.operator in _CHOOSING:
            router = _chosen_by(graph, constraints, node, given[0][place], first)
            if router is not None:
                found[router] = None
    return found


def _chosen_by(
    graph: Graph, constraints: Constraints, node: Node, given: Sequence[Any], first: Mapping[int, tuple[int, int]]
) -> tuple[int, int] | None:
    """The parameter and the dimension of it whose positions an operator chooses among."""
    label = given[0] if given else None
    if label is None or not label.axes:
        return None
    dim = node.argument("dim")
    ids = label.axes[-1].ids
    if dim not in (-1, len(label.axes) - 1, None) or ids.shape[1] != 1 or len(ids) < 2:
        return None
    place = first.get(int(ids[0, 0]))
    if place is None or graph.values[place[0]].origin is not Origin.PARAMETER:
        return None
    begin, size = constraints.ids_of[place]
    return place if size == len(ids) and bool((ids[:, 0] == range(begin, begin + size)).all()) else None


@dataclass(frozen=True, slots=True)
class _Candidates:
    modules: Mapping[str, nn.Module]
    tensors: Mapping[str, tuple[int, ...]]
    graph: Graph
    taken: Collection[tuple[str, int]]
    decided: Collection[Number]
    looked_after: Collection[int]
    weights: frozenset[str]  # of all routers
    lists: tuple[ExpertList, ...]

    def guesses(self, value: int, dim: int) -> list[Router]:
        """The router that a parameter may be the weight of, once for each guess at what belongs to its experts; none if
        nothing chooses along its dimension."""
        weight, experts = self.graph.values[value].name, self.graph.values[value].shape[dim]
        makers = [] if (weight, dim) in self.taken else _logits(self.graph.runs[0], value)
        if not makers:
            return []
        nodes = self.graph.runs[0].nodes
        module = nodes[makers[0]].location.module
        home, lists = self._home(weight, experts)
        if home is None:
            return []
        within = [one for one in lists if _is_in(one.path, home)]
        slices = [(weight, dim), *self._slices(home, experts, within, weight)]
        stacks = [] if within else [name for name, _ in slices if len(self.tensors[name]) > 1]
        homes = {name.rpartition(".")[0] for name in (weight, *stacks)}
        paths = {module, home, *(nodes[one].location.module for one in makers)}
        block = self._called(paths)
        owners = {*paths, block, *homes}
        owners |= {outer for one in within for outer in (one.path, one.path.rpartition(".")[0])}
        numbers = list(self._numbers(block, experts))
        least = self._least(block, experts)
        why = self._why_not(value, makers, experts, block) or self._why_elsewhere(block, slices, within)
        whole = Router(
            weight, dim, module, block, makers[0], nodes[makers[0]].location, experts, least, tuple(slices),
            tuple(within), tuple(numbers), why,
        )  # fmt: skip
        near = tuple(one for one in slices if one[0].rpartition(".")[0] in homes)
        counts = tuple(place for place in numbers if place[0] in owners)
        likely = [replace(whole, slices=near, numbers=counts), replace(whole, numbers=counts)]
        return list(dict.fromkeys([*likely, replace(whole, slices=near), whole]))

    def _home(self, weight: str, experts: int) -> tuple[str | None, list[ExpertList]]:
        """The smallest module around a router that has experts, and all lists of as many entries."""
        lists: list[ExpertList] = []
        for one in self.lists:  # outer ones first
            inside = any(_is_in(one.path, outer.path) for outer in lists)
            if len(one.keys) == experts and any(self._within(one.path)) and not inside and not _is_in(weight, one.path):
                lists.append(one)
        for path in around(weight.rpartition(".")[0]):
            if any(_is_in(one.path, path) for one in lists):
                return path, lists
            if any(len(self.tensors[name]) > 1 for name, _ in self._slices(path, experts, [], weight)):
                return path, lists
        return None, lists

    def _within(self, path: str) -> Iterator[str]:
        return (name for name in self.tensors if _is_in(name, path))

    def _slices(self, home: str, experts: int, lists: Sequence[ExpertList], weight: str) -> list[tuple[str, int]]:
        """The tensors in a module, beside a router's weight and those of others, whose first dimension has as many
        positions as there are experts and is in no group of units."""
        return [
            (name, 0)
            for name in self._within(home)
            if name not in self.weights | {weight}
            and self.tensors[name][:1] == (experts,)
            and (name, 0) not in self.taken
            and not any(_is_in(name, one.path) for one in lists)
        ]

    def _called(self, paths: Collection[str]) -> str:
        """The smallest module that is called and has all of ``paths`` in it."""
        called = {call.module for call in self.graph.runs[0].calls}
        first = next(iter(paths))
        for path in around(first):
            if path in called and all(_is_in(one, path) for one in paths):
                return path
        return ""

    def _least(self, block: str, experts: int) -> int:
        """How many experts are chosen at once."""
        run = self.graph.runs[0]
        spans = [(call.first, call.end) for call in run.calls if call.module == block] or [(0, len(run.nodes))]
        chosen = [1]
        for first, end in spans:
            for node in run.nodes[first:end]:
                shapes = [self.graph.values[number].shape for number in node.inputs()]
                if node.operator is aten.topk.default and shapes[0][-1:] == (experts,):
                    chosen.append(int(node.argument("k")))
        return max(chosen)

    def _numbers(self, block: str, experts: int) -> Iterator[Number]:
        """The attributes in a module that are the number of experts, and follow nothing else."""
        for place in sorted(self.graph.tracked, key=str):
            path, name, where = place
            if not _is_in(path, block) or place in self.decided or path not in self.modules:
                continue
            module = self.modules[path]
            if any(isinstance(module, kind) and size.name == name for kind, sizes in SIZES.items() for size in sizes):
                continue
            value = module.__dict__.get(name, class_attribute(type(module), name))
            if id(value) not in self.looked_after and _at(value, where) == experts:
                yield place

    def _why_not(self, value: int, makers: Sequence[int], experts: int, block: str) -> str | None:
        nodes, values = self.graph.runs[0].nodes, self.graph.values
        for one in makers:
            (made,) = nodes[one].outputs
            if made is None or values[made].shape[-1:] != (experts,):
                return "its logits do not have the experts along their last dimension"
        if len({nodes[one].location.module for one in makers}) > 1:
            return "several modules make logits of its weight"
        if block and any(_escapes(self.graph, run, block) for run in self.graph.runs if run.error is None):
            return f"what {block!r} computes is used outside of it without being returned"
        return None

    def _why_elsewhere(self, block: str, slices: Sequence[tuple[str, int]], lists: Sequence[ExpertList]) -> str | None:
        """Why what belongs to experts has to stay as it is: something outside of their block reads it."""
        names = {name for name, _ in slices}
        names |= {name for name in self.tensors if any(_is_in(name, one.path) for one in lists)}
        values = self.graph.values
        for run in self.graph.runs:
            spans = [range(call.first, call.end) for call in run.calls if call.module == block]
            for place, node in enumerate(run.nodes if block else ()):
                read = {values[values[number].root].name for number in node.inputs()} & names
                if read and not any(place in span for span in spans):
                    return f"{min(read)!r} is read outside of {block!r}"
        return None


def _logits(run: Run, weight: int) -> list[int]:
    """The operators that make something of a weight, or of views and copies of it, and of something else."""
    own, found = {weight}, []
    for place, node in enumerate(run.nodes):
        given = list(node.inputs())
        if own.isdisjoint(given):
            continue
        if own.issuperset(given):
            own.update(number for number in node.outputs if number is not None)
        else:
            found.append(place)
    return found


def _escapes(graph: Graph, run: Run, block: str) -> bool:
    """Whether something that a module computes is used outside of it, and is not among what it returns."""
    for call in run.calls:
        if call.module != block:
            continue
        returned = set(_values(call.result))
        inside = {
            number
            for node in run.nodes[call.first : call.end]
            for number in node.outputs
            if number is not None and graph.values[number].origin is Origin.COMPUTED
        } - returned
        outside = {number for node in run.nodes[call.end :] for number in node.inputs()}
        if not inside.isdisjoint(outside | {*run.outputs, *run.escaped}) or not _is_plain(call):
            return True
    return False


def _values(result: Any) -> Iterator[int]:
    if isinstance(result, Ref):
        yield result.value
    elif isinstance(result, (tuple, list, dict)):
        for item in result.values() if isinstance(result, dict) else result:
            yield from _values(item)


def _is_plain(call: ModuleCall) -> bool:
    """Whether a module returns nothing but tensors, plain data and what it was given."""

    def plain(result: Any) -> bool:
        if isinstance(result, (tuple, list, dict)):
            return all(map(plain, result.values() if isinstance(result, dict) else result))
        return isinstance(result, (Ref, Argument, type(None), bool, int, float, str))

    return plain(call.result)


def _at(value: Any, where: Where) -> Any:
    try:
        for step in where:
            value = part(value, step)
    except LookupError:
        return None
    return value


def _is_in(name: str, path: str) -> bool:
    return not path or name == path or name.startswith(f"{path}.")
