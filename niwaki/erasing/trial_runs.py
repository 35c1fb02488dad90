"""Run a network without some structures, and compare what it does with the record of its run with all of them."""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import final

from torch import nn

from niwaki.core.absent import Result
from niwaki.core.edits import EraseModules
from niwaki.core.integrations import Integration, registered
from niwaki.core.renaming import Renaming
from niwaki.erasing.class_form import ModulesLeft, handed_on
from niwaki.erasing.edited import edited
from niwaki.erasing.living import RunLeft, around
from niwaki.erasing.stand_ins import with_stand_ins
from niwaki.erasing.walking import Terms, steps
from niwaki.errors import first_line
from niwaki.trace.extent import NOTHING
from niwaki.trace.fake import failures_not_logged
from niwaki.trace.graph import Graph, Node, Origin, Run
from niwaki.trace.structures import ExampleCall
from niwaki.trace.tracer import trace


@final
class TrialRuns:
    """Runs ``model``, of which ``graph`` is the record, on the example ``calls``."""

    def __init__(self, model: nn.Module, calls: Sequence[ExampleCall], graph: Graph) -> None:
        self._model, self._calls, self._graph = model, calls, graph
        self._shapes = {value.name: value.shape for value in graph.values if value.origin is Origin.PARAMETER}

    def difference(self, left: ModulesLeft, stand_ins: Mapping[str, Result]) -> str | None:
        """What the model does otherwise after the edit of ``left``; None if nothing. Zeros stand for the modules at the
        paths ``stand_ins`` meanwhile, which are not looked into."""
        edit = with_stand_ins(left.edit, stand_ins)
        names = Renaming(edit.moved)
        staying = frozenset(map(names.after, left.staying))
        for one, tried in self._again(left, edit):
            why = _difference(self._graph, one, tried, names, frozenset(stand_ins), staying)
            if why is not None:
                return why
        return None

    def places_count(self, left: ModulesLeft, stand_ins: Mapping[str, Result]) -> bool:
        """Whether anything between the layers that stay is done otherwise after the edit of ``left``, which deletes
        entries of lists of modules and does nothing else; also where configurations with an entry for each layer
        follow."""
        followers = [one for one in registered() if one.looked_after(self._model)]
        return self._goes_otherwise(left, stand_ins, []) and (
            not followers or self._goes_otherwise(left, stand_ins, followers)
        )

    def _goes_otherwise(
        self, left: ModulesLeft, stand_ins: Mapping[str, Result], followers: Sequence[Integration]
    ) -> bool:
        edit = with_stand_ins(left.edit, stand_ins)
        names = Renaming(edit.renumbered)
        inside = {path: names.after(path) for path in stand_ins}
        before = inside | dict.fromkeys(edit.entries)
        after = {path: path for path in inside.values() if path is not None}
        for one, tried in self._again(left, edit, followers):
            (again,) = tried.runs
            same: dict[int, int] = {}
            for call in one.run.calls:
                if call.module in edit.entries:
                    same |= handed_on(call, one)
            terms: Terms = {}
            dense = steps(self._graph, one.run, before, same, names.after, terms)
            if again.error is not None or steps(tried, again, after, {}, str, terms) != dense:
                return True
        return False

    def _again(
        self, left: ModulesLeft, edit: EraseModules, followers: Sequence[Integration] = ()
    ) -> Iterator[tuple[RunLeft, Graph]]:
        """The runs of which some line was not run before in one of these, each with its record after ``edit``."""
        dense = {path: result.fixed(self._length) for path, result in edit.absent.items()}
        deleted = _deleted(self._model, edit)
        left_out = {*edit.absent, *edit.entries}  # what decides there does not run
        runs = {id(one.run): one for one in left.runs}
        seen: set[object] = set()
        with ExitStack() as stack:
            stack.enter_context(edited(self._model, replace(edit, absent=dense)))
            stack.enter_context(failures_not_logged())
            for follower in followers:
                stack.enter_context(follower.with_fewer_layers(self._model, deleted))
            for run, call in zip(self._graph.runs, itertools.cycle(self._calls), strict=False):
                lines = {node.location for node in run.nodes}
                if id(run) in runs and not lines <= seen:
                    seen |= lines
                    decided = [one for one in run.decisions if left_out.isdisjoint(around(one.module))]
                    yield runs[id(run)], trace(
                        self._model, [call], (run.training,), required=True, failing=True, decided=decided,
                        extent=NOTHING,
                    )  # fmt: skip

    def _length(self, dims: tuple[tuple[str, int], ...]) -> int:
        (name, dim), *_ = dims
        return self._shapes[name][dim]


def _deleted(model: nn.Module, edit: EraseModules) -> dict[str, tuple[int, list[int]]]:
    """The lists of modules that lose entries: how many they have, and the places of these."""
    found = {}
    for path in dict.fromkeys(entry.rpartition(".")[0] for entry in edit.entries):
        keys = list(model.get_submodule(path)._modules)
        prefix = f"{path}." if path else ""
        found[path] = len(keys), [place for place, key in enumerate(keys) if prefix + key in edit.entries]
    return found


def _difference(
    graph: Graph,
    left: RunLeft,
    tried: Graph,
    names: Renaming,
    stand_ins: frozenset[str],
    staying: frozenset[str | None],
) -> str | None:
    """What a run does otherwise than the dense one without what was erased: it fails, gives other shapes, or calls
    other operators with parameters than those ``staying`` for code that lives on."""
    again = tried.runs[0]
    if again.error is not None:
        return f"its code fails without it: {type(again.error).__qualname__}: {first_line(again.error)}"
    dead = frozenset(left.dead)
    expected = [
        (place, node.operator, tuple(map(names.after, read)))
        for place, node in enumerate(left.run.nodes)
        if place not in dead
        and (read := _parameters(graph, node))
        and stand_ins.isdisjoint(around(node.location.module))
    ]
    found = [
        (place, node.operator, read)
        for place, node in enumerate(again.nodes)
        if (read := _parameters(tried, node)) and not staying.issuperset(read)
    ]
    if [called[1:] for called in found] != [called[1:] for called in expected]:
        return "its code calls other modules without it"
    outputs = [left.handed_on.get(number, number) for number in left.run.outputs]
    if _outputs(tried, again, again.outputs, [place for place, *_ in found]) != _outputs(
        graph, left.run, outputs, [place for place, *_ in expected]
    ):
        return "its code returns something else without it"
    return None


def _outputs(
    graph: Graph, run: Run, outputs: Sequence[int], called: Sequence[int]
) -> list[tuple[tuple[int, ...], int]]:
    """The shape of each of ``outputs``, and how many of the operators ``called`` come before the one that made it."""
    made = {number: place for place, node in enumerate(run.nodes) for number in node.outputs if number is not None}
    return [(graph.values[number].shape, bisect_left(called, made.get(number, -1))) for number in outputs]


def _parameters(graph: Graph, node: Node) -> tuple[str, ...]:
    values = (graph.values[number] for number in node.inputs())
    return tuple(value.name for value in values if value.origin is Origin.PARAMETER)
