"""What a structure leaves behind beside its term: buffers and inputs of the model that it writes to."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from niwaki.erasing.flow import Flow, writes
from niwaki.trace.graph import Graph, Origin, Value


@dataclass(frozen=True, slots=True, eq=False)
class WrittenState:
    """``written``: operators and the memory of buffers or inputs that they write to, or replace; ``used``: the
    operators that are given any of that memory."""

    flow: Flow
    written: tuple[tuple[int, Value], ...]
    used: dict[int, set[int]]  # value number of the memory -> operators

    @classmethod
    def of(cls, graph: Graph, flow: Flow) -> WrittenState:
        """What the first run writes."""
        run, values = graph.runs[0], graph.values
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
        return cls(flow, tuple(written), used)

    def read_elsewhere(self, within: Iterable[int], seen: Collection[int]) -> str | None:
        """Why the vertices ``within`` cannot vanish without a trace: what they write, or what follows from them and
        reaches no output writes, is the caller's or is read by others, in a later call for instance. None if nothing is
        of the kind. ``seen``: the vertices that reach an output."""
        if not self.written:
            return None
        touched, waiting = set(within), list(within)
        while waiting:
            for behind in self.flow.graph.successor_indices(waiting.pop()):
                if behind not in touched and behind not in seen:
                    touched.add(behind)
                    waiting.append(behind)
        for place, value in self.written:
            if place in touched and value.origin is Origin.INPUT:
                return f"it writes to {value.name!r}, an input of the model"
            if place in touched and not self.used[value.number] <= touched:
                return f"it writes to {value.name!r}, which is read elsewhere too"
        return None
