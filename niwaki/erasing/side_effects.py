"""What a structure does beside its term: it writes to buffers or inputs of the model, or tells Python numbers."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from niwaki.erasing.flow import Flow, writes
from niwaki.trace.graph import Graph, Origin, Run, Value
from niwaki.trace.operators import traits


@dataclass(frozen=True, slots=True, eq=False)
class SideEffects:
    """``written``: operators and the memory of buffers or inputs that they write to, or replace; ``used``: the
    operators that are given any of that memory. ``told``: operators that tell Python what is in a tensor; ``weighed``:
    those that are given parameters, before which Python may read what it likes (positions, say)."""

    flow: Flow
    written: tuple[tuple[int, Value], ...]
    used: dict[int, set[int]]  # value number of the memory -> operators
    told: frozenset[int]
    weighed: frozenset[int]

    @classmethod
    def of(cls, graph: Graph, run: Run, flow: Flow) -> SideEffects:
        """What a run writes and tells."""
        values = graph.values
        state = (Origin.BUFFER, Origin.INPUT)
        written = [
            (place, values[values[number].root])
            for place, node in enumerate(run.nodes)
            for number in writes(node)
            if values[values[number].root].origin in state
        ]
        made = {number: place for place, node in enumerate(run.nodes) for number in node.outputs if number is not None}
        written += [(made[now], values[buffer]) for buffer, now in run.remade if now in made]
        used: dict[int, set[int]] = {value.number: set() for _, value in written}
        for place, node in enumerate(run.nodes) if used else ():
            for number in node.inputs():
                if values[number].root in used:
                    used[values[number].root].add(place)
        told = {
            place
            for place, node in enumerate(run.nodes)
            if traits(node.operator).decides and all(output is None for output in node.outputs)
        }
        told |= {made[number] for number in run.escaped if number in made}
        weighed = {
            place
            for place, node in enumerate(run.nodes)
            if any(values[number].origin is Origin.PARAMETER for number in node.inputs())
        }
        return cls(flow, tuple(written), used, frozenset(told), frozenset(weighed))

    def of_structure(self, within: Iterable[int], seen: Collection[int]) -> str | None:
        """Why the vertices ``within`` cannot vanish without a trace: what they write, or what follows from them and
        reaches no output writes, is the caller's or is read by others, in a later call for instance; or Python reads
        it. None if nothing is of the kind. ``seen``: the vertices that reach an output."""
        if not self.written and not self.told:
            return None
        own = frozenset(within)
        touched = self._behind(own, own, seen)
        if not self.told.isdisjoint(self._behind(own & self.weighed, own, seen)):
            return "Python code reads values of it"
        for place, value in self.written:
            if place in touched and value.origin is Origin.INPUT:
                return f"it writes to {value.name!r}, an input of the model"
            if place in touched and not self.used[value.number] <= touched:
                return f"it writes to {value.name!r}, which is read elsewhere too"
        return None

    def _behind(self, first: Collection[int], own: Collection[int], seen: Collection[int]) -> set[int]:
        """The vertices ``first``, and what follows from them among ``own`` and what reaches no output."""
        found, waiting = set(first), list(first)
        while waiting:
            for behind in self.flow.graph.successor_indices(waiting.pop()):
                if behind not in found and (behind in own or behind not in seen):
                    found.add(behind)
                    waiting.append(behind)
        return found
