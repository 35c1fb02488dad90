"""Which results of an exported program share memory, and what is written where."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import final

from torch import fx
from torch._ops import OpOverload

from niwaki.program.nodes import memories


@final
class SharedMemory:
    """The memory of a graph as it was when this was made, with what has been joined since.

    The graph is run for it once, and only if something writes to memory in place.
    """

    def __init__(self, module: fx.GraphModule) -> None:
        self.place = {node: place for place, node in enumerate(module.graph.nodes)}
        self._writes = {node: list(written(node)) for node in self.place}
        self._joined: dict[int, int] = {}
        self._own = memories(module) if any(self._writes.values()) else {}

    def used_otherwise(self, join: fx.Node, operand: fx.Node) -> bool:
        """Whether anything behind an addition in place uses the memory of its result by the name of an earlier node,
        other than ``operand``."""
        place = self.place[join]
        return any(
            self.place[user] > place
            for number in self._own[join]
            for node in self._sharing[number]
            if self.place[node] < place and node is not operand
            for user in node.users
        )

    def is_written_behind(self, join: fx.Node, other: fx.Node) -> bool:
        """Whether anything behind ``join`` writes to its memory, or to that of ``other``."""
        numbers = self._numbers((join, other)) if self._own else ()
        return any(self._last_write.get(number, -1) > self.place[join] for number in numbers)

    def hand_over(self, join: fx.Node, other: fx.Node) -> None:
        """From now on the results of ``join`` are the memory of ``other``."""
        first, *rest = self._numbers((join, other)) if self._own else (-1,)
        for number in rest:
            self._joined[number] = first
            self._last_write[first] = max(self._last_write.get(first, -1), self._last_write.get(number, -1))

    def stands_for(self, made: fx.Node, node: fx.Node) -> None:
        """A new node ``made`` has come in the place of ``node``, with what counts as its memory."""
        self.place[made] = self.place[node]
        if self._own:
            self._own[made] = self._own[node]

    def _numbers(self, nodes: Iterable[fx.Node]) -> list[int]:
        """The numbers of the memory of ``nodes``, one of all that are joined."""
        found = dict.fromkeys(number for node in nodes for number in self._own[node])
        return list(dict.fromkeys(map(self._one_of, found)))

    def _one_of(self, number: int) -> int:
        while number in self._joined:
            number = self._joined[number]
        return number

    @cached_property
    def _sharing(self) -> dict[int, list[fx.Node]]:
        found: dict[int, list[fx.Node]] = {}
        for node, numbers in self._own.items():
            for number in numbers:
                found.setdefault(number, []).append(node)
        return found

    @cached_property
    def _last_write(self) -> dict[int, int]:
        """The place of the last node that writes to each memory."""
        found: dict[int, int] = {}
        for node, given in self._writes.items():
            for number in self._numbers(given):
                found[number] = self.place[node]
        return found


def written(node: fx.Node) -> Iterator[fx.Node]:
    """The arguments that a node writes to."""
    if not isinstance(node.target, OpOverload):
        return
    schema = node.target._schema.arguments
    given = dict(zip((argument.name for argument in schema), node.args, strict=False)) | node.kwargs
    for argument in schema:
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = given.get(argument.name)
            items = value if isinstance(value, (list, tuple)) else [value]
            yield from (one for one in items if isinstance(one, fx.Node))
