"""Figures of a search space: the parameters that each group reaches and each pin holds back; also as JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
from torch import nn

from niwaki.core.cost import Cost
from niwaki.core.location import Location
from niwaki.core.names import named_modules
from niwaki.core.space import Group, SearchSpace
from niwaki.core.structures import Structure

INSPECTION_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Prediction:
    """The cost of the network with about ``keep_macs`` of its MACs kept; ``problem``: why that cannot be reached."""

    keep_macs: float
    cost: Cost | None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Law:
    """The result of `niwaki.testing.check_model`: whether cut and masked networks agree, and how closely or where not.

    ``forward``, ``backward``: the largest deviations of outputs and gradients, None where they were not compared.
    """

    holds: bool
    verdict: str
    forward: float | None = None
    backward: float | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """A network and its prunable units.

    ``inputs``: the example inputs that the costs are for. ``coverage``: the fraction of the parameters that lie in at
    least one unit. ``least``: the cost with the fewest possible units in every group. ``criterion``: the one that chose
    the units of the predictions. ``notes``: the parts that were not analysed. ``seconds``: the time of the analysis.
    ``structures``: what could vanish as a whole, if that was asked for.
    """

    model: str
    inputs: str
    coverage: float
    units: int
    dense: Cost
    least: Cost
    groups: tuple[GroupFigures, ...]
    reasons: tuple[PinReason, ...]
    criterion: str
    predictions: tuple[Prediction, ...]
    law: Law | None
    notes: tuple[str, ...]
    seconds: float
    structures: tuple[Structure, ...] = ()

    def to_json(self) -> str:
        """The inspection as JSON text with a format number."""
        return json.dumps({"format": INSPECTION_FORMAT, **dataclasses.asdict(self)}, indent=1)


_KINDS: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.modules.conv._ConvNd, "channels"),
    (nn.modules.batchnorm._NormBase, "channels"),
    (nn.Linear, "features"),
    (nn.Embedding, "features"),
)


@dataclass(frozen=True, slots=True)
class GroupFigures:
    """A group in numbers. ``kind``: the type of its units, in the tensor that computes them. ``params``: parameters
    that lie in its units; a weight between two groups lies in both. ``tensors``: the parameters it runs through.
    ``inexact``: why removing its units changes the result although they are zero; None for exact groups."""

    name: str
    units: int
    kind: str
    params: int
    tensors: tuple[str, ...]
    inexact: str | None


@dataclass(frozen=True, slots=True)
class PinReason:
    """A reason why positions can never be removed. ``lines``: source lines that cause it, most positions first.
    ``params``: the parameters that lie in no unit because of it; a parameter with two reasons counts for both.
    ``first``: one of the pinned dimensions."""

    text: str
    lines: tuple[str, ...]
    dimensions: int
    positions: int
    params: int
    first: str


def group_figures(space: SearchSpace) -> tuple[GroupFigures, ...]:
    """All groups, by the number of parameters that they reach, the most first.

    >>> import niwaki, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> group_figures(niwaki.search_space(net, torch.randn(1, 4)))[0].kind
    'features'
    """
    shapes = {shape.name: shape.shape for shape in space.shapes}
    modules = dict(named_modules(space.model))
    figures = [
        GroupFigures(
            name=group.name,
            units=group.units,
            kind=_kind(group, modules),
            params=_reach(group, shapes),
            tensors=tuple(dict.fromkeys(piece.tensor for piece in group.slices if piece.parameter)),
            inexact=group.inexact,
        )
        for group in space.width_groups
    ]
    return tuple(sorted(figures, key=lambda figure: (-figure.params, -figure.units)))


def reasons(space: SearchSpace) -> tuple[PinReason, ...]:
    """The pins by reason, by the number of parameters that they hold back, the most first.

    >>> import niwaki, torch
    >>> net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> [(reason.text, reason.params) for reason in reasons(niwaki.search_space(net, torch.randn(1, 4)))]
    [('it is an output of the model', 2), ('it meets an input of the model', 0)]
    """
    shapes = {shape.name: shape.shape for shape in space.shapes}
    pinned: defaultdict[str, Counter[int]] = defaultdict(Counter)
    for pin in space.pins:
        pinned[pin.parameter][pin.dim] += pin.count
    found: defaultdict[str, _Totals] = defaultdict(_Totals)
    for pin in space.pins:
        sums = found[pin.reason]
        sums.held[pin.parameter][pin.dim] += pin.count
        sums.lines[line_of(pin.location)] += pin.count
        sums.dimensions += 1
        sums.positions += pin.count
        sums.first = sums.first or f"{pin.parameter} dim {pin.dim}"
    made = [
        PinReason(
            text=text,
            lines=tuple(line for line, _ in sums.lines.most_common() if line),
            dimensions=sums.dimensions,
            positions=sums.positions,
            params=sum(_cost(shapes[name], pinned[name], held) for name, held in sums.held.items()),
            first=sums.first,
        )
        for text, sums in found.items()
    ]
    return tuple(sorted(made, key=lambda reason: (-reason.params, -reason.positions)))


def line_of(location: Location | None) -> str:
    """A source line, relative to the current directory or to that of the packages; empty if it is not known."""
    if location is None or not location.line:
        return ""
    _, installed, file = location.file.rpartition("site-packages/")
    if not installed and file.startswith(os.getcwd() + os.sep):
        file = os.path.relpath(file)
    return f"{file}:{location.line}"


@dataclass(slots=True)
class _Totals:
    """The sums for one reason; ``held``: pinned positions by parameter and dimension."""

    held: defaultdict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    lines: Counter[str] = field(default_factory=Counter)
    dimensions: int = 0
    positions: int = 0
    first: str = ""


def _cost(shape: tuple[int, ...], pinned: Counter[int], held: Counter[int]) -> int:
    """The number of entries pinned in every dimension, minus those that other reasons pin as well."""
    dims = range(len(shape))
    return math.prod(pinned[dim] for dim in dims) - math.prod(pinned[dim] - held[dim] for dim in dims)


def _reach(group: Group, shapes: dict[str, tuple[int, ...]]) -> int:
    """The parameters that lie in at least one unit of a group."""
    outside: dict[str, float] = {}
    for piece in group.slices:
        if piece.parameter:
            size = shapes[piece.tensor][piece.dim]
            share = 1 - len(np.unique(piece.index)) / size
            outside[piece.tensor] = outside.get(piece.tensor, 1.0) * share
    return round(sum(math.prod(shapes[name]) * (1 - share) for name, share in outside.items()))


def _kind(group: Group, modules: dict[str, nn.Module]) -> str:
    """The type of the units: `channels`, or `blocks of 64 features` such as a head."""
    known = [
        f"blocks of {piece.index.shape[1]} {noun}" if piece.index.shape[1] > 1 else noun
        for piece in group.slices
        for kind, noun in _KINDS
        if piece.role.produces and isinstance(modules.get(piece.tensor.rpartition(".")[0]), kind)
    ]
    width = group.slices[0].index.shape[1]
    return known[0] if known else "slices" if width == 1 else f"blocks of {width} slices"
