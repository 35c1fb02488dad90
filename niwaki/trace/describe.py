"""The record of a model as text: one line per operator, the first lines of each run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from niwaki.core.describe import first_of

if TYPE_CHECKING:
    from niwaki.trace.graph import Graph, Node, Run

_SHOWN = 24  # operators that are shown of each run


def describe_graph(graph: Graph) -> str:
    """One line per operator: its number in the run, its name, its argument and result tensors, its module, its line of
    source. A tensor is its value number and its shape; parameters, buffers and inputs are listed first, by name."""
    named = [f"  {_tensor(graph, value.number)} {value.name}" for value in graph.values if value.name]
    lines = ["tensors with a name", *first_of(named)]
    for number, run in enumerate(graph.runs):
        lines += [_head(run, number), *_aligned([_row(graph, node) for node in run.nodes[:_SHOWN]])]
        if len(run.nodes) > _SHOWN:
            lines.append(f"  … {len(run.nodes) - _SHOWN:,} more")
        lines.append(f"  returns {' '.join(_tensor(graph, value) for value in run.outputs)}")
    return "\n".join(lines)


def _head(run: Run, number: int) -> str:
    mode = "train mode" if run.training else "eval mode, which stands for train mode too" if run.both else "eval mode"
    return f"run {number}, {mode}" + ("" if run.error is None else f", failed with {type(run.error).__qualname__}")


def _row(graph: Graph, node: Node) -> tuple[str, ...]:
    given = " ".join(_tensor(graph, value) for value in node.inputs())
    made = " ".join(_tensor(graph, value) for value in node.outputs if value is not None)
    name = str(node.operator).removeprefix("aten.").removesuffix(".default")
    return name, f"{given} -> {made}", node.location.module or ".", node.location.brief


def _tensor(graph: Graph, value: int) -> str:
    return f"%{value}[{','.join(map(str, graph.values[value].shape))}]"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows with their numbers, each column as wide as its widest entry."""
    numbered = [(str(number), *row) for number, row in enumerate(rows)]
    widths = [max(map(len, column)) for column in zip(*numbered, strict=True)]
    return ["  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in numbered]
